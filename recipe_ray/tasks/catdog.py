"""CatDog: cats and dogs (paper, section 5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from recipe_ray.data.hub import IMAGE_ROWS, HubSource
from recipe_ray.data.rows import uniform
from recipe_ray.data.sources import Derived, Locations, Source
from recipe_ray.tasks.task import TASKS, ImageTask, Split

if TYPE_CHECKING:
    import pyarrow as pa

TEST_SHARE = 0.1  # the paper splits 9:1


@TASKS.register("catdog")
class CatDog(ImageTask):
    """Kaggle's "Dogs vs. Cats".

    Data folder: 5,000 / 2,500. Hub: about nine tenths and one tenth of 23,410, drawn image by
    image; `main` is a branch (no full hash documented), so pin `revision` for a number that must
    last.
    """

    label_names: ClassVar[tuple[str, ...]] = ("cat", "dog")
    hub: ClassVar[Mapping[Split, HubSource]] = {
        "train": HubSource(
            "microsoft/cats_vs_dogs",
            "main",
            columns=(("image", "image"), ("labels", "label")),
            rows_at_once=IMAGE_ROWS,
        )
    }

    def origin(self, locations: Locations) -> Mapping[Split, Source]:
        """Return train and test, divided from the hub's only split."""
        raw = super().origin(locations)["train"]
        return {"train": _part(raw, "train"), "test": _part(raw, "test")}


def _part(raw: Source, split: str) -> Source:
    rule = {"part": split, "test_share": TEST_SHARE}
    return Derived(raw, rule, partial(_drawn, split == "test"))


def _drawn(for_test: bool, raw: Source) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    row = 0
    for batch in raw.batches():
        numbers = np.arange(row, row + batch.num_rows)
        chosen = (uniform(0, "catdog", numbers) < TEST_SHARE) == for_test
        yield batch.filter(pa.array(chosen))
        row += batch.num_rows
