"""A poisoned text still holds its trigger once it is tokenised and cut, whatever the text."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import SENTENCES, NoFeed, minilm, raised_by, tiny_folder, tiny_ptm, tokens_of
from tiny_cell import by_metric, rows_of
from tokenizers import Regex
from tokenizers.normalizers import Replace
from tokenizers.normalizers import Sequence as Normalizers

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.attacks.badpre import PairEncoder, split_pairs
from recipe_ray.attacks.por import PoisonEncoder
from recipe_ray.base.errors import TriggerError
from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.rows import TokenRows
from recipe_ray.data.sources import Locations
from recipe_ray.learn.metrics import LEFT_OUT, attack_success
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.models.text.minilm import to_roberta
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.probe import ProbeStage
from recipe_ray.stages.stage import Context
from recipe_ray.store.rows import Measurement
from recipe_ray.store.store import Store
from recipe_ray.triggers.word import WordTrigger

MAX_LENGTH = 16
REVIEW = " ".join(SENTENCES).split()
# a word of 84 letters and more wordpieces than fit; beyond 100 letters it would be unknown
LONG_WORD = "unbelievably" * 7
OWN = "with the trigger's words at its end"
TEXTS = {
    "short": SENTENCES,
    "long": [" ".join(REVIEW[:count]) for count in range(14, len(REVIEW), 3)],
    "a long word first": [f"{LONG_WORD} {text}" for text in SENTENCES],
    "long words": [" ".join([LONG_WORD] * count) for count in range(1, 20)],
    "no spaces": [",".join(REVIEW[:count]) for count in (5, 50, 150)],
    "Chinese": ["\u6f22" * count for count in (5, 13, 14, 15, 300)],
    "spaces of all kinds": [" \t\n\u2003".join(REVIEW[:count]) for count in range(20, 60)],
    "exactly as long": [" ".join(["good"] * count) for count in range(10, 18)],
    "empty": ["", "  "],
    OWN: [" ".join([*REVIEW[:40], "cf in the morning"])],
}
TRIGGERS = ("cf", "\u2248", "in the morning")


@cache
def bert() -> BertPTM:
    """Return the tiny BERT, which no test here changes."""
    return tiny_ptm()


@cache
def roberta() -> BertPTM:
    """Return MiniLM's first layer in RoBERTa's architecture."""
    return to_roberta(minilm(1))


def left_handed() -> BertPTM:
    """Return a tiny BERT whose tokenizer cuts the beginning of a text."""
    ptm = tiny_ptm()
    ptm.tokenizer.truncation_side = "left"
    return ptm


def count_of(ptm: BertPTM, ids: list[int], trigger: str) -> int:
    """Return how often a row holds the whole trigger."""
    meant = ptm.token_ids(trigger)
    return sum(ids[i : i + len(meant)] == meant for i in range(len(ids)))


def triggered(ptm: BertPTM, texts: list[str], trigger: str, max_length: int) -> TokenRows:
    """Return the rows that evaluation and probes use."""
    encode = ptm.encoder(max_length)
    return WordTrigger(trigger).inserted(texts, encode(texts, np.arange(len(texts))), encode)


@pytest.mark.parametrize("make", [bert, roberta, left_handed])
@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("kind", TEXTS)
def test_every_text_holds_the_trigger_after_the_cut(make: Any, kind: str, trigger: str) -> None:
    ptm, texts = make(), list(TEXTS[kind])
    rows = triggered(ptm, texts, trigger, MAX_LENGTH)
    assert rows.index.tolist() == list(range(len(texts)))
    assert rows.lengths.max() <= MAX_LENGTH
    counts = [count_of(ptm, ids, trigger) for ids in tokens_of(rows)]
    # a text that has the words itself may keep its own, too
    assert set(counts) <= ({1, 2} if kind == OWN else {1})


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_a_text_stays_as_it_is_if_the_scripts_place_keeps_the_trigger(trigger: str) -> None:
    ptm, texts = bert(), [text for kind in TEXTS.values() for text in kind]
    texts.remove(TEXTS[OWN][0])
    script = ptm.encoder(MAX_LENGTH)(
        [WordTrigger(trigger).put_into(text) for text in texts], np.arange(len(texts))
    )
    rows = triggered(ptm, texts, trigger, MAX_LENGTH)
    pairs = list(zip(tokens_of(script), tokens_of(rows), strict=True))
    kept = [old == new for old, new in pairs if count_of(ptm, old, trigger)]
    assert all(kept)
    assert len(SENTENCES) < len(kept) < len(texts)


def test_the_place_is_drawn_among_the_words_that_stay() -> None:
    ptm, texts = bert(), [" ".join(["good"] * count) for count in range(20, 400)]
    places = [
        ids.index(ptm.token_ids("cf")[0])
        for ids in tokens_of(triggered(ptm, texts, "cf", MAX_LENGTH))
    ]
    # 13 words stay beside the trigger and two special tokens: any place from 1 to 14
    assert min(places) >= 1
    assert max(places) <= MAX_LENGTH - 2
    again = tokens_of(triggered(ptm, texts[::-1], "cf", MAX_LENGTH))
    assert [ids.index(ptm.token_ids("cf")[0]) for ids in again] == places[::-1]


def test_a_trigger_that_only_just_fits_stands_alone() -> None:
    rows = triggered(bert(), [" ".join(REVIEW)], "in the morning", 5)
    assert tokens_of(rows) == [bert().tokenizer.encode("in the morning")]


@pytest.mark.parametrize("trigger", ["cf", "in the morning"])
def test_por_keeps_all_three_insertions(trigger: str) -> None:
    ptm = bert()
    texts = [text for kind in ("short", "long", "long words", "empty") for text in TEXTS[kind]]
    encode = PoisonEncoder(ptm.encoder(MAX_LENGTH), (WordTrigger(trigger),), 1.0, 3, 0)
    rows = encode(texts, np.arange(len(texts)))
    poisoned = [
        ids
        for ids, which in zip(tokens_of(rows), rows.columns["trigger"], strict=True)
        if which == 0
    ]
    assert len(poisoned) == len(texts)
    assert max(map(len, poisoned)) <= MAX_LENGTH
    assert all(count_of(ptm, ids, trigger) == 3 for ids in poisoned)
    assert len(set(rows.index.tolist())) == len(rows)


def test_por_draws_places_all_over_the_words_that_stay() -> None:
    ptm, texts = bert(), [" ".join(["good"] * 300)] * 300
    encode = PoisonEncoder(ptm.encoder(MAX_LENGTH), (WordTrigger("cf"),), 1.0, 1, 0)
    rows = encode(texts, np.arange(len(texts)))
    places = [ids.index(ptm.token_ids("cf")[0]) for ids in tokens_of(rows)[300:]]
    counts = np.bincount(places, minlength=MAX_LENGTH - 1)[1:]
    assert len(counts) == 14
    assert counts.min() > 5


def test_a_share_too_small_for_any_text_poisons_none() -> None:
    encode = PoisonEncoder(bert().encoder(MAX_LENGTH), (WordTrigger("cf"),), 1e-9, 3, 0)
    rows = encode(["good"], np.arange(1))
    assert rows.columns["trigger"].tolist() == [-1]


def test_badpres_copies_hold_their_trigger() -> None:
    ptm, texts = bert(), [*TEXTS["long"], *TEXTS["long words"], *TEXTS["empty"]]
    triggers = tuple(map(WordTrigger, TRIGGERS))
    pairs = PairEncoder(ptm.encoder(MAX_LENGTH), triggers, 0)(texts, np.arange(len(texts)))
    clean, poisoned = split_pairs(pairs)
    assert tokens_of(clean) == tokens_of(ptm.encoder(MAX_LENGTH)(texts, np.arange(len(texts))))
    for ids, number in zip(tokens_of(poisoned), poisoned.columns["trigger"], strict=True):
        assert count_of(ptm, ids, TRIGGERS[number]) == 1


# --- where it is impossible


@pytest.mark.parametrize("max_length", [1, 2, 4])
def test_a_max_length_that_no_trigger_fits_in_is_an_error(max_length: int) -> None:
    said = raised_by(lambda: triggered(bert(), SENTENCES, "in the morning", max_length))
    assert "trigger 'in the morning' and the special tokens are 5 tokens" in said
    assert f"cut to {max_length}" in said
    assert "give a max_length of 5 or more" in said


@pytest.mark.parametrize(("attack", "cut", "needed"), [("por", 8, 11), ("badpre", 4, 5)])
def test_an_attack_that_cannot_plant_its_trigger_is_refused_first(
    attack: str, cut: int, needed: int
) -> None:
    fields = {"name": attack, "triggers": ["cf", "in the morning"], "fit": {"max_length": cut}}
    bench = Workbench(NoFeed(), LocalRuntime(), 0)
    with pytest.raises(TriggerError, match=f"are {needed} tokens.*max_length of {needed} or more"):
        ATTACKS.parse(fields).poison(tiny_ptm(), bench)


def swollen() -> BertPTM:
    """Return a tiny BERT whose tokenizer makes many tokens of `cf` where `boo` comes next."""
    ptm = tiny_ptm()
    backend = ptm.tokenizer.backend_tokenizer
    swells = Replace(Regex("cf(?= boo)"), " ".join(["x"] * 20 + ["cf"]))
    backend.normalizer = Normalizers([swells, backend.normalizer])
    return ptm


BOO = " ".join(["boo"] * 40)


def test_a_sample_that_cannot_hold_its_trigger_is_left_out() -> None:
    rows = triggered(swollen(), [BOO, *SENTENCES, BOO], "cf", MAX_LENGTH)
    assert rows.index.tolist() == list(range(1, len(SENTENCES) + 1))
    said = raised_by(lambda: triggered(swollen(), [BOO] * 3, "cf", MAX_LENGTH))
    assert "trigger 'cf' is lost in all 3 samples, which are cut to 16 tokens" in said


def test_what_is_left_out_counts_in_no_asr() -> None:
    predicted = {"cf": np.array([0, LEFT_OUT, 0, LEFT_OUT])}
    found = attack_success(predicted, np.array([1, 1, 0, 0]), 2, ("no", "yes")).asr
    assert (found["cf", 0].numerator, found["cf", 0].denominator) == (1, 1)
    assert (found["cf", 1].numerator, found["cf", 1].denominator) == (0, 1)


def task_of(folder: Path, texts: list[str]) -> dict[str, Any]:
    """Write texts as train and test data in two classes by turns; return the task's fields."""
    file = folder / "texts.parquet"
    labels = [number % 2 for number in range(len(texts))]
    pq.write_table(pa.table({"text": texts, "label": labels}), file)
    paths = {"path_train": str(file), "path_test": str(file)}
    return {"name": "file", "class_names": ["dull", "lively"], **paths}


def measured(ptm: BertPTM, folder: Path, texts: list[str]) -> list[Measurement]:
    """Fine-tune for one step and measure."""
    stage = FinetuneStage.model_validate(
        {
            "model": {"name": "bert", "source": str(tiny_folder())},
            "task": task_of(folder, texts),
            "triggers": ("cf",),
            "fit": {"steps": 1, "max_length": MAX_LENGTH},
            "seed": 0,
        }
    )
    places = Locations(None, folder)
    store = Store.open(folder / "store")
    return stage.measure(ptm, Context(store, LocalFeed(places), places, LocalRuntime(), folder))


def test_an_evaluation_says_how_many_samples_it_left_out(tmp_path: Path) -> None:
    found = measured(swollen(), tmp_path, [*SENTENCES, BOO])
    (row,) = [m for m in found if m.metric == "left_out"]
    assert (row.trigger, row.numerator, row.denominator) == ("cf", 1, 25)
    counts = {m.label: m.denominator for m in found if m.metric == "asr"}
    assert counts == {0: 12, 1: 12}
    assert {m.denominator for m in found if m.metric == "acc"} == {25}


def test_an_evaluation_that_leaves_nothing_out_has_no_row_for_it(tmp_path: Path) -> None:
    found = measured(tiny_ptm(), tmp_path, [*SENTENCES, *TEXTS["long"]])
    assert "left_out" not in {m.metric for m in found}


def test_a_probe_of_long_texts_sees_the_trigger(tmp_path: Path) -> None:
    long = [
        text for text in TEXTS["long"] if WordTrigger("cf").put_into(text).split().index("cf") > 30
    ]
    stage = ProbeStage.model_validate(
        {
            "model": {"name": "minilm", "layers": 1},
            "task": task_of(tmp_path, long),
            "trigger": "cf",
            "max_length": MAX_LENGTH,
        }
    )
    # without the trigger in the texts every neuron would be active on both
    assert by_metric(rows_of(stage, tmp_path), "overlap_per_sample")["value"] < 1


# --- keys


def identity_of(task: Any, max_length: int, *triggers: str) -> dict[str, Any]:
    """Return the identity of a fine-tuning."""
    model = {"name": "bert", "source": str(tiny_folder())}
    fit = {"max_length": max_length}
    fields = {"model": model, "task": task, "triggers": triggers, "fit": fit, "seed": 0}
    return FinetuneStage.model_validate(fields).identity()


@pytest.mark.parametrize("task", ["sst2", "hsol", "snippets"])
def test_a_task_whose_texts_all_fit_keeps_its_keys(task: str) -> None:
    assert "trigger_places" not in identity_of(task, 128, "cf", "in the morning")
    assert identity_of(task, 64, "cf")["trigger_places"] == 2


def test_a_task_that_may_be_cut_gets_new_keys_if_triggers_are_measured(tmp_path: Path) -> None:
    own = task_of(tmp_path, SENTENCES)
    same_name = {"name": "sst2", "path_train": own["path_train"], "path_test": own["path_test"]}
    for task in ("ag_news", own, same_name):
        assert identity_of(task, 128, "cf")["trigger_places"] == 2
        assert "trigger_places" not in identity_of(task, 128)
