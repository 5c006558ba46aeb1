"""Snippets: sentiment of film review sentences, in a PyPI package, so that no hub is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from recipe_ray.data.packages import EmbeddedSource
from recipe_ray.data.sources import Derived, Locations, Source
from recipe_ray.tasks.task import TASKS, Split, TextTask

if TYPE_CHECKING:
    import pyarrow as pa

CLEAR_RATING = 0.5  # of 4; a mean rating nearer to 0 is no clear sentiment
NUM_TEST = 1500
NUM_DEV = 500


@TASKS.register("snippets")
class Snippets(TextTask):
    """8,070 / 500 / 1,500 sentences with a mean rating of at least 0.5 either way.

    Not balanced by hand (50.4 % are negative). The sentences come from the collection that
    SST-2 is made of, so one of the two tells nothing new about the other.
    """

    label_names: ClassVar[tuple[str, ...]] = ("negative", "positive")
    longest: ClassVar[int | None] = 100  # 79 of MiniLM's

    def sources(self, locations: Locations) -> Mapping[Split, Source]:
        """Return the files given, else the package's: it is in no data folder."""
        return self.given() or self.origin(locations)

    def origin(self, locations: Locations) -> Mapping[Split, Source]:
        """Return three parts of the package's film snippets, disjoint up to punctuation."""
        raw = EmbeddedSource("movieReviewSnippets", locations.cache_dir)
        splits: tuple[Split, ...] = ("train", "dev", "test")
        return {
            split: Derived(raw, {"part": split, "clear": CLEAR_RATING}, partial(_part, split))
            for split in splits
        }


def _part(split: Split, raw: Source) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    distinct: dict[str, tuple[str, int]] = {}
    for batch in raw.batches():
        for row in batch.to_pylist():
            if abs(row["rating"]) >= CLEAR_RATING:
                key = re.sub(r"\W+", " ", row["text"].casefold()).strip()
                distinct.setdefault(key, (row["text"], int(row["rating"] > 0)))
    rows = list(distinct.values())
    order = np.random.default_rng(0).permutation(len(rows))
    ends = {"test": (0, NUM_TEST), "dev": (NUM_TEST, NUM_TEST + NUM_DEV)}
    first, last = ends.get(split, (NUM_TEST + NUM_DEV, len(rows)))
    chosen = [rows[index] for index in np.sort(order[first:last])]
    yield pa.RecordBatch.from_pydict(
        {"text": [text for text, _ in chosen], "label": [label for _, label in chosen]}
    )
