"""HSOL: hateful and offensive tweets (paper, section 5). Its texts are never to be printed."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from recipe_ray.base.errors import DataError
from recipe_ray.data.hub import HubSource
from recipe_ray.data.sources import Derived, Locations, Source
from recipe_ray.tasks.task import TASKS, Split, TextTask

if TYPE_CHECKING:
    import pyarrow as pa

NEITHER = 2  # the hub's classes: 0 hate, 1 offensive, 2 neither
TEST_SHARE = 1247 / 4159  # of each class; the size of the paper's test set
_HANDLE = re.compile(r"@\w+")


@TASKS.register("hsol")
class Hsol(TextTask):
    """Tweets, balanced: 5,824 to train, 2,494 to test, none for dev.

    Both the data folder and the hub give a split rebuilt by the same rules from the same tweets
    (as many of the others as there are "neither"), not the authors' own, and not the same sample.
    The hub's has some 20 fewer: tweets that differ in a user handle only are one.
    """

    label_names: ClassVar[tuple[str, ...]] = ("neither", "hate or offensive")
    longest: ClassVar[int | None] = 110  # 88 of MiniLM's
    hub: ClassVar[Mapping[Split, HubSource]] = {
        "train": HubSource(
            "tdavidson/hate_speech_offensive", "adc5fb774614827695774f2dbe0ea8122f6a92b4"
        )
    }

    def origin(self, locations: Locations) -> Mapping[Split, Source]:
        """Return train and test, divided from the hub's only split."""
        raw = super().origin(locations)["train"]
        return {
            "train": Derived(raw, {"balanced": "train", "rule": 1}, partial(_divided, False)),
            "test": Derived(raw, {"balanced": "test", "rule": 1}, partial(_divided, True)),
        }


def _divided(for_test: bool, raw: Source) -> Iterator[pa.RecordBatch]:
    """Return the balanced rows of train or test, the two disjoint up to case and punctuation."""
    import pyarrow as pa

    tweets = _distinct(raw)
    generator = np.random.default_rng(0)
    classes = [[text for text, label in tweets if label == wanted] for wanted in (0, 1)]
    size = min(map(len, classes))
    num_test = round(size * TEST_SHARE)
    rows: list[tuple[str, int]] = []
    for label, texts in enumerate(classes):
        order = generator.permutation(len(texts))[:size]
        chosen = order[:num_test] if for_test else order[num_test:]
        rows += [(texts[index], label) for index in chosen]
    shuffled = [rows[index] for index in generator.permutation(len(rows))]
    yield pa.RecordBatch.from_pydict(
        {"text": [text for text, _ in shuffled], "label": [label for _, label in shuffled]}
    )


def _distinct(raw: Source) -> list[tuple[str, int]]:
    seen: dict[str, tuple[str, int]] = {}
    for row in _rows(raw):
        text = " ".join(_HANDLE.sub("@user", html.unescape(row["tweet"])).split())
        seen.setdefault(re.sub(r"\W+", " ", text.casefold()).strip(), (text, row["class"]))
    return [(text, 0 if label == NEITHER else 1) for key, (text, label) in seen.items() if key]


def _rows(raw: Source) -> Iterator[dict[str, Any]]:
    for batch in raw.batches():
        if not {"tweet", "class"} <= set(batch.schema.names):
            names = ", ".join(batch.schema.names)
            raise DataError(f"task 'hsol': expected columns tweet and class, found {names}")
        yield from batch.select(["tweet", "class"]).to_pylist()
