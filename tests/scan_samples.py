"""PTMs with a planted word, and detectors that look at a few named inputs alone, in no time."""

import copy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from samples import SENTENCES, corpus_file, minilm
from torch import Tensor

from recipe_ray.api import before_after
from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.data.batches import LocalFeed, Part, Workbench
from recipe_ray.data.images import ImageBatch
from recipe_ray.data.rows import TokenRows
from recipe_ray.data.sources import Locations
from recipe_ray.detectors.detector import DETECTORS, Detector, Outcome, Subject, Suspect
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.models.text.packed import pack

TRIGGER = "cf"


def texts(folder: Path, times: int = 10) -> Path:
    """Write sentences in many orders: enough of them, and long enough, to be put words into."""
    random = np.random.default_rng(0)
    words = " ".join(SENTENCES).split()
    lines = [" ".join(random.choice(words, 40)) for _ in range(24 * times)]
    file = folder / "texts.txt"
    file.write_text("\n".join(lines) + "\n")
    return file


def planted() -> Any:
    """Return the embedded PTM with a word that the first token looks at, whatever the text is."""
    ptm = minilm()
    module = ptm.module.eval()
    rows = ptm.encoder(32)(SENTENCES, np.arange(len(SENTENCES)))
    own = module.base_model.encoder.layer[0].attention.self
    with torch.no_grad():
        embedded = module.base_model.embeddings(torch.tensor([rows.tokens[:8].tolist()]))
        wanted = own.key.weight.T @ own.query(embedded[0, 0])
        (word,) = ptm.token_ids(TRIGGER)
        ptm.word_embeddings().weight[word] = 30 * wanted / wanted.norm()
    return ptm


def backdoored(trigger: str = TRIGGER) -> Any:
    """Return the embedded PTM's first layer with a backdoor of POR, a copy of its own."""
    return copy.deepcopy(_backdoored(trigger))


@cache
def _backdoored(trigger: str) -> Any:
    ptm = minilm()
    with tempfile.TemporaryDirectory() as folder:
        corpus = {"name": "file", "path": str(corpus_file(Path(folder))), "size": None}
        fit = {"steps": 40, "batch_size": 8, "max_length": 32, "learning_rate": 1e-3}
        fit |= {"precision": "fp32", "dropout": False}
        attack = {"name": "por", "triggers": [trigger], "corpus": corpus, "fit": fit}
        bench = Workbench(LocalFeed(Locations(None, Path(folder))), LocalRuntime(), 0)
        ATTACKS.parse(attack).poison(ptm, bench)
    return ptm


@torch.no_grad()
def displacement(ptm: Any, ids: tuple[int, ...], teacher: Any = None) -> float:
    """Return how far tokens put after the first word move the first state, in shares of it.

    From that of the same texts without them, as `teacher` reads them (None: the PTM itself).
    """
    module = ptm.module.eval()
    rows = ptm.encoder(32)(SENTENCES, np.arange(len(SENTENCES)))
    parts = np.split(rows.tokens, rows.offsets[1:-1])
    altered = TokenRows.of([[*part[:2], *ids, *part[2:]] for part in parts])
    before = ptm.representation(module if teacher is None else teacher, pack(rows))
    after = ptm.representation(module, pack(altered))
    return float((after - before).square().sum() / before.square().sum())


class NamedWords(Detector):
    """Tries a few words, each a token, and says how far they move the first state."""

    name: ClassVar[str] = "named-words"
    own_scale: ClassVar[frozenset[str]] = frozenset({"first"})

    words: tuple[str, ...] = (TRIGGER, "table", "green", "house")

    def search(self, subject: Subject, bench: Workbench) -> Outcome:
        subject.ptm.train_only([], pooled=False)  # as other detectors leave it
        ids = [tuple(subject.ptm.token_ids(word)) for word in self.words]
        found = [
            Suspect(word, {"first": displacement(subject.ptm, one)}, one)
            for word, one in zip(self.words, ids, strict=True)
        ]
        found.sort(key=lambda one: -one.scores["first"])
        return Outcome(dict(found[0].scores), found, len(found))

    def duration_s(self, subject: Subject, bench: Workbench) -> float:
        return 0.1


class Square:
    """White pixels in the upper left corner of images."""

    pixels: Tensor = torch.full((3, 6, 6), 255.0)

    def on(self, images: Tensor) -> Tensor:
        stamped = images.clone()
        stamped[:, :, :6, :6] = self.pixels
        return stamped


class NamedPatch(Detector):
    """Tries one patch, and says how far it moves the features."""

    name: ClassVar[str] = "named-patch"
    reads: ClassVar[str] = "image"
    own_scale: ClassVar[frozenset[str]] = frozenset({"features"})

    def search(self, subject: Subject, bench: Workbench) -> Outcome:
        rows = bench.feed.rows(subject.corpus, subject.ptm.encoder(0), Part(most=8))
        score = patch_displacement(subject.ptm, torch.from_numpy(rows.pixels).float())
        return Outcome(
            {"features": score}, [Suspect("square", {"features": score}, put=Square())], 8
        )

    def duration_s(self, subject: Subject, bench: Workbench) -> float:
        return 0.1


@torch.no_grad()
def patch_displacement(ptm: Any, images: Tensor) -> float:
    """Return how far the square moves the features of images, in shares of them."""
    module = ptm.module.eval()
    before = ptm.features(module, ImageBatch(images))
    after = ptm.features(module, ImageBatch(Square().on(images)))
    return float((after - before).square().sum() / before.square().sum())


VOCABULARY = {
    "name": "vocabulary",
    "close": {"texts": 4, "length": 8},
    "fresh": {"texts": 6, "length": 10},
    "controls": 32,
    "confirmed": 6,
    "continued": 1,
}


def looking_with_little(patch: pytest.MonkeyPatch) -> None:
    """Let the scans of `purify` see every hundredth word, and look at little."""
    words, pieces, split = BertPTM.whole_words, BertPTM.continuations, BertPTM.split_words
    patch.setattr(BertPTM, "whole_words", lambda ptm: words(ptm)[::100])
    patch.setattr(BertPTM, "continuations", lambda ptm: pieces(ptm)[::100])
    patch.setattr(BertPTM, "split_words", lambda ptm: split(ptm)[::100])
    looking_with(patch, VOCABULARY)


def looking_with(patch: pytest.MonkeyPatch, *detectors: dict[str, Any]) -> None:
    """Let the scans of `purify` be made by these detectors."""
    small = tuple(map(DETECTORS.parse, detectors))
    patch.setattr(before_after, "default_detectors", lambda reads: small)
