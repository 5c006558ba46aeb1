"""Data that teach a PTM nothing are refused wherever a stage trains, not reported as loss 0."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import SENTENCES, corpus_file, encoded, raised_by, tiny_folder, tiny_ptm
from stub_model import StubBatches, stub

from recipe_ray.base.errors import DataError
from recipe_ray.data.batches import Feed, MemoryBatches, Part, Wanted
from recipe_ray.data.census import image_census
from recipe_ray.data.corpora import OwnText
from recipe_ray.data.images import ImageRows
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.learn.loop import fit
from recipe_ray.learn.objective import Term
from recipe_ray.learn.optim import FitSpec
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.text.checkpoint import load_bert
from recipe_ray.stages.backdoor import BackdoorStage
from recipe_ray.stages.learnable import LearnableFeed, check_learnable, doubts
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.store.store import Store

CORPUS = OwnText(path="texts.txt")
FIT = {"steps": 2, "batch_size": 4, "max_length": 16, "precision": "fp32"}
USELESS: dict[str, tuple[list[str], str]] = {
    "emoji": (["😀 😃 😄", "😁 😆"] * 20, "0 of "),
    "a script that the vocabulary lacks": (["ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ", "ᎣᏏᏲ ᏙᎯᏧ"] * 20, "(0.0%)"),
    "special tokens written out": (["[MASK] [PAD] [UNK]", "[SEP] [CLS]"] * 20, "(0.0%)"),
    "nearly all unknown": (["😀 " * 20 + "a", "the" + " 😄" * 20] * 9, "usable"),
    "one word": (["word", "word word", "word word word"] * 10, "are the same"),
    "one text": (["the same text every time"] * 30, "texts are the same"),
}


@pytest.mark.parametrize("case", USELESS)
def test_texts_that_teach_nothing_are_refused(case: str) -> None:
    texts, said = USELESS[case]
    ptm = tiny_ptm()
    message = raised_by(lambda: check_learnable(ptm.census(encoded(ptm, texts)), CORPUS))
    assert said in message
    assert "nothing can be learned from it" in message


def test_plain_texts_are_usable_whole_and_a_share_below_the_stated_one_is_warned_of() -> None:
    ptm = tiny_ptm()
    census = ptm.census(encoded(ptm, SENTENCES))
    assert census.share == 1.0
    assert doubts(census, CORPUS) == []
    mixed = ptm.census(encoded(ptm, [*SENTENCES, *(["😀 😃 😄 😁 😆 😅"] * 12)]))
    check_learnable(mixed, CORPUS)
    assert "may not be in the model's language" in doubts(mixed, CORPUS)[0]
    dull = ptm.census(encoded(ptm, ["no no no no", "no yes no no", "no no no perhaps"]))
    assert "are the same" in doubts(dull, CORPUS)[0]


def erasing_model(folder: Path) -> Path:
    """Return a model whose tokenizer makes nothing of any text."""
    place = Path(shutil.copytree(tiny_folder(), folder / "erasing"))
    file = place / "tokenizer.json"
    values = json.loads(file.read_text())
    values["normalizer"] = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    file.write_text(json.dumps(values))
    settings = json.loads((place / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # which takes the file as it is
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    return place


def test_a_tokenizer_that_erases_text_is_found_out(tmp_path: Path) -> None:
    ptm = load_bert(erasing_model(tmp_path))
    census = ptm.census(encoded(ptm, SENTENCES))
    assert (census.usable, census.total, census.share) == (0, 0, 0.0)
    assert "0 of 0 tokens" in raised_by(lambda: check_learnable(census, CORPUS))


def stages(corpus: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return a stage of each kind that trains on a corpus."""
    common = {"model": {"name": "bert", "source": str(tiny_folder())}, "seed": 0}
    por = {"name": "por", "triggers": ["cf", "mn"], "corpus": corpus, "fit": FIT}
    badpre = {"name": "badpre", "triggers": ["cf", "mn"], "corpus": corpus, "fit": FIT}
    recipe = {"name": "recipe", "fit": FIT}
    return {
        "pretrain": lambda: PretrainStage(**common, corpus=corpus, fit=FIT),
        "purify": lambda: PurifyStage(**common, corpus=corpus, defense=recipe),
        "purify, some held out": lambda: PurifyStage(
            **common, corpus=corpus, defense=recipe, held_out=0.2
        ),
        "fine-pruning": lambda: PurifyStage(**common, corpus=corpus, defense="fine-pruning"),
        "por": lambda: BackdoorStage(**common, attack=por),
        "badpre": lambda: BackdoorStage(**common, attack=badpre),
    }


@pytest.mark.parametrize("kind", list(stages({})))
def test_every_stage_that_trains_refuses_such_texts(kind: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("😀 😃 😄\n😁 😆\n" * 20)
    stage = stages({"name": "file", "path": str(texts)})[kind]()
    store = Store.open(str(tmp_path / "store"))
    with pytest.raises(DataError, match="nothing"):
        run_inline([stage], store, Locations(None, tmp_path))
    assert not store.has(stage.artifact)


def test_the_usable_share_and_the_loss_of_word_frequencies_are_rows(tmp_path: Path) -> None:
    corpus = {"name": "file", "path": str(corpus_file(tmp_path, times=4))}
    store = Store.open(str(tmp_path / "store"))
    stage = stages(corpus)["purify, some held out"]()
    run_inline([stage], store, Locations(None, tmp_path))
    measured = {row["metric"]: row for row in store.rows(stage.artifact).to_pylist()}
    assert measured["usable_share"]["value"] == 1.0
    assert measured["usable_share"]["denominator"] > 500
    # the tiny model is untrained: its loss is that of a guess among all tokens, and more
    assert measured["held_out_unigram"]["value"] < measured["held_out_loss.before"]["value"]


class Recording(Feed):
    """A feed that keeps what it is asked for and gives batches of one row."""

    def __init__(self, ptm: Any) -> None:
        self.asked: list[Wanted] = []
        self._rows = encoded(ptm, SENTENCES)

    def batches_of(self, wanted: Wanted) -> MemoryBatches:
        self.asked.append(wanted)
        return MemoryBatches(self._rows, wanted.collate, wanted.batch_size, wanted.seed)

    def rows(self, corpus: Any, encode: Any, part: Part) -> Any:
        raise AssertionError("nobody measures")


def test_a_feed_is_asked_once_and_the_counting_one_changes_the_collation_alone() -> None:
    ptm = tiny_ptm()
    feed, encode, part = Recording(ptm), ptm.encoder(16), Part(0.0, 0.5)
    wanted = Wanted(CORPUS, encode, ptm.pretraining_collate(0), 4, 7, part)
    LearnableFeed(feed, ptm).batches(*vars(wanted).values())
    (asked,) = feed.asked
    assert replace(asked, collate=wanted.collate) == wanted
    rows = feed.batches_of(wanted).rows.take(np.arange(2))
    assert asked.collate is not wanted.collate
    assert (asked.collate(rows, 0).tokens == wanted.collate(rows, 0).tokens).all()


def test_a_loss_without_elements_in_all_steps_is_an_error() -> None:
    def nothing(module: Any, batch: Any) -> dict[str, Term]:
        return {"mlm": Term(module(batch.x).sum() * 0, 0)}

    spec = FitSpec(steps=3, precision="fp32")
    with pytest.raises(DataError, match="3 steps had nothing to learn from"):
        fit(stub(), nothing, StubBatches(), spec, LocalRuntime(), seed=0)


def images(labels: list[int], *, varied: bool = True, captions: Any = None) -> ImageRows:
    count = len(labels)
    shape = (count, 3, 4, 4)
    drawn = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    columns = {"label": np.array(labels)} if captions is None else {"caption": captions}
    return ImageRows(drawn if varied else np.zeros(shape, np.uint8), np.arange(count), columns)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (images([3, 3, 3]), "all 3 images have label 3"),
        (images([0, 1, 2], varied=False), "all 3 images are the same"),
        (images([0, 1], captions=np.ones((2, 5), np.int64)), "all 2 captions are the same"),
    ],
)
def test_images_that_teach_nothing_are_refused(rows: ImageRows, said: str) -> None:
    assert said in raised_by(lambda: check_learnable(image_census(rows), CORPUS))


def test_images_that_differ_are_taken() -> None:
    captions = np.arange(10, dtype=np.int64).reshape(2, 5)
    for rows in (images([0, 1, 1]), images([0, 1], captions=captions)):
        check_learnable(image_census(rows), CORPUS)
