"""AG News: topics of news items (paper, section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from recipe_ray.data.hub import HubSource
from recipe_ray.data.sources import Derived, Locations, Source
from recipe_ray.tasks.task import TASKS, Split, TextTask

if TYPE_CHECKING:
    import pyarrow as pa

NUM_TRAIN = 11_106  # the paper's sample of 120,000
NUM_DEV = 10_000
_HUB = ("fancyzhx/ag_news", "eb185aade064a813bc0b7f42de02595523103ca4", None)


@TASKS.register("ag_news")
class AgNews(TextTask):
    """11,106 / 10,000 / 7,600 news items in four topics.

    Data folder: very likely the paper's own sample, lower-cased descriptions without titles. Hub:
    a seeded sample of those sizes, titles and case kept, so numbers differ.
    """

    label_names: ClassVar[tuple[str, ...]] = ("world", "sports", "business", "sci/tech")
    longest: ClassVar[int | None] = 450  # 343 of MiniLM's
    hub: ClassVar[Mapping[Split, HubSource]] = {
        "train": HubSource(*_HUB, "train"),
        "test": HubSource(*_HUB, "test"),
    }

    def origin(self, locations: Locations) -> Mapping[Split, Source]:
        """Return the hub's test set and two disjoint samples of its training set."""
        raw = super().origin(locations)
        return {
            "train": _sampled(raw["train"], 0, NUM_TRAIN),
            "dev": _sampled(raw["train"], NUM_TRAIN, NUM_TRAIN + NUM_DEV),
            "test": raw["test"],
        }


def _sampled(raw: Source, first: int, last: int) -> Source:
    return Derived(raw, {"sample": f"{first}-{last}", "seed": 0}, partial(_part, first, last))


def _part(first: int, last: int, raw: Source) -> Iterator[pa.RecordBatch]:
    """Return the rows at places `first` to `last` of a fixed permutation, in the order of `raw`."""
    import pyarrow as pa

    table = pa.Table.from_batches(raw.batches())
    order = np.random.default_rng(0).permutation(table.num_rows)
    yield from table.take(np.sort(order[first:last])).to_batches()
