"""The loops people write: padded, fp32, logits of every token. Nothing here comes from recipe_ray
but the weights and the tokenizer of MiniLM, loaded into transformers' own classes."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from transformers import BertForMaskedLM, BertForSequenceClassification

from benchmarks.contenders import Measure, data_folder
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.text.minilm import MiniLM
from recipe_ray.triggers.word import WordTrigger

BATCH = 32
SEED = 50


def column(name: str, field: str) -> list[Any]:
    """Return a column of a Parquet file of the data folder."""
    values: list[Any] = pq.read_table(data_folder() / f"{name}.parquet")[field].to_pylist()
    return values


def pretrained(kind: type[Any], **config: Any) -> tuple[Any, Any]:
    """Return MiniLM in transformers' class `kind`, attention as by default, and the tokenizer."""
    ptm = MiniLM().load()
    settings = copy.deepcopy(ptm.module.config)
    settings.update(config)
    model = kind._from_config(settings, attn_implementation="sdpa")
    model.load_state_dict(ptm.module.state_dict(), strict=False)
    return model, ptm.tokenizer


def padded_to(length: int) -> dict[str, Any]:
    """Return the tokenizer's arguments for tensors of one length."""
    padding = {"padding": "max_length", "truncation": True, "max_length": length}
    return {**padding, "return_tensors": "pt"}


def masked(ids: Tensor, special: Tensor, mask_id: int, size: int) -> tuple[Tensor, Tensor]:
    """Return inputs and labels [B, L] of static 80/10/10 masks over 15 % of the tokens."""
    generator = torch.Generator().manual_seed(SEED)
    chosen = (torch.rand(ids.shape, generator=generator) < 0.15) & ~special
    fate = torch.rand(ids.shape, generator=generator)
    inputs = ids.masked_fill(chosen & (fate < 0.8), mask_id)
    anything = torch.randint(size, ids.shape, generator=generator)
    inputs = torch.where(chosen & (fate >= 0.9), anything, inputs)
    return inputs, ids.masked_fill(~chosen, -100)


def plain_purification(steps: int) -> Measure:
    """Return a measurement of the authors' loop: samples/s over `steps` steps."""
    model, tokenizer = pretrained(BertForMaskedLM)
    texts = column("bookcorpus", "text")[: BATCH * (steps + 1)]
    padded = padded_to(64)
    encoded = tokenizer(texts, return_special_tokens_mask=True, **padded)
    special = encoded.special_tokens_mask.bool()
    inputs, labels = masked(encoded.input_ids, special, tokenizer.mask_token_id, len(tokenizer))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("intermediate.dense.weight"))
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-5, eps=1e-8, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=2500)
    model.train()

    def step(rows: slice) -> None:
        mask = encoded.attention_mask[rows]
        out = model(input_ids=inputs[rows], attention_mask=mask, labels=labels[rows])
        loss = out.loss + sum(torch.norm(weight) for weight in weights)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()

    return lambda: timed_steps(step, steps)


def plain_finetuning(steps: int, num_test: int, triggers: tuple[str, ...]) -> Measure:
    """Return a measurement: seconds that the whole stage would take (see `benchmarks.finetune`)."""
    model, tokenizer = pretrained(BertForSequenceClassification, num_labels=2)
    padded = padded_to(128)
    encoded = tokenizer(column("sst2_train", "text")[: BATCH * (steps + 1)], **padded)
    labels = torch.tensor(column("sst2_train", "label")[: BATCH * (steps + 1)])
    tests, test_labels = column("sst2_test", "text"), column("sst2_test", "label")
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    num_steps = 3 * -(-len(column("sst2_train", "label")) // BATCH)

    def step(rows: slice) -> None:
        mask = encoded.attention_mask[rows]
        out = model(input_ids=encoded.input_ids[rows], attention_mask=mask, labels=labels[rows])
        optimizer.zero_grad()
        out.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    @torch.no_grad()
    def evaluate(trigger: str | None) -> int:
        texts = [WordTrigger(trigger).put_into(t) if trigger else t for t in tests[:num_test]]
        correct = 0
        for first in range(0, num_test, BATCH):
            part = tokenizer(texts[first : first + BATCH], **padded)
            truth = torch.tensor(test_labels[first : min(first + BATCH, num_test)])
            correct += int((model(**part).logits.argmax(1) == truth).sum())
        return correct

    def measure() -> float:
        model.train()
        train_s = num_steps * BATCH / timed_steps(step, steps)
        model.eval()
        begun = time.perf_counter()
        evaluate(None)
        evaluate(triggers[0])
        text_s = (time.perf_counter() - begun) / (2 * num_test)
        return train_s + text_s * len(tests) * (1 + len(triggers))

    return measure


def plain_recipe(model: Any, tokenizer: Any, texts: list[str], fit: FitSpec, seed: int) -> None:
    """Purify a masked LM in place: the penalised weights (intermediate dense) train, fp32.

    Batches are padded to their longest text and logits taken at masked tokens alone, which
    computes the same as padding to 64 with the logits of all tokens.
    """
    settings = {"truncation": True, "max_length": fit.max_length, "padding": True}
    encoded = tokenizer(texts, return_special_tokens_mask=True, return_tensors="pt", **settings)
    special = encoded.special_tokens_mask.bool()
    inputs, labels = masked(encoded.input_ids, special, tokenizer.mask_token_id, len(tokenizer))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("intermediate.dense.weight"))
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def loss_of(rows: Tensor) -> Tensor:
        mask = encoded.attention_mask[rows]
        longest = int(mask.sum(1).max())
        ids, goal = inputs[rows, :longest], labels[rows, :longest]
        states = model.bert(input_ids=ids, attention_mask=mask[:, :longest]).last_hidden_state
        wanted = goal != -100
        loss = nn.functional.cross_entropy(model.cls(states[wanted]), goal[wanted])
        return loss + torch.stack([torch.norm(weight) for weight in weights]).sum()

    _train(model, loss_of, len(texts), fit, fit.steps or 0, seed)


def plain_finetune(
    model: Any, tokenizer: Any, texts: Sequence[str], labels: Any, fit: FitSpec, seed: int
) -> None:
    """Fine-tune a classifier in place, every parameter, fp32."""
    truth = torch.as_tensor(labels)
    model.requires_grad_(True)

    def loss_of(rows: Tensor) -> Tensor:
        batch = tokenizer([texts[row] for row in rows.tolist()], **_padded(fit.max_length))
        loss: Tensor = model(**batch, labels=truth[rows]).loss
        return loss

    num_steps = math.ceil(fit.epochs * -(-len(texts) // fit.batch_size))
    _train(model, loss_of, len(texts), fit, num_steps, seed)


@torch.no_grad()
def plain_predict(
    model: Any, tokenizer: Any, texts: Sequence[str], trigger: str | None, max_length: int
) -> Any:
    """Return the predicted labels [N] of texts, with a trigger inserted where one is given."""
    model.eval()
    samples = [WordTrigger(trigger).put_into(text) if trigger else text for text in texts]
    found = []
    for first in range(0, len(samples), BATCH):
        batch = tokenizer(samples[first : first + BATCH], **_padded(max_length))
        found.append(model(**batch).logits.argmax(1))
    return torch.cat(found).numpy()


def _train(
    model: Any, loss_of: Callable[[Tensor], Tensor], count: int, fit: FitSpec, steps: int, seed: int
) -> None:
    torch.manual_seed(seed)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=fit.learning_rate, eps=1e-8, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    model.train()
    done = 0
    while done < steps:
        for rows in torch.randperm(count).split(fit.batch_size)[: steps - done]:
            optimizer.zero_grad()
            torch.autograd.backward(loss_of(rows))
            nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            schedule.step()
            done += 1


def _padded(max_length: int) -> dict[str, Any]:
    cut = {"truncation": True, "max_length": max_length}
    return {"padding": True, "return_tensors": "pt", **cut}


def timed_steps(step: Any, steps: int) -> float:
    """Return samples/s of `step(rows)` over `steps` batches, after one to warm up."""
    step(slice(0, BATCH))
    begun = time.perf_counter()
    for number in range(1, steps + 1):
        step(slice(BATCH * number, BATCH * (number + 1)))
    return steps * BATCH / (time.perf_counter() - begun)
