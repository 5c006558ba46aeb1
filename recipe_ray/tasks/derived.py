"""Tasks whose splits are made here by a rule, because the original has no suitable ones.

The rule is part of the identity of each split (`Derived`). Texts of HSOL are never to be printed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from recipe_ray.base.errors import DataError
from recipe_ray.data.hub import IMAGE_ROWS, HubSource
from recipe_ray.data.packages import EmbeddedSource
from recipe_ray.data.sources import Derived, Locations, Source
from recipe_ray.tasks.task import TASKS, ImageTask, Split, TextTask

if TYPE_CHECKING:
    import pyarrow as pa

AG_NEWS_TRAIN = 11_106  # the paper's sample of 120,000
AG_NEWS_DEV = 10_000
_AG_NEWS = ("fancyzhx/ag_news", "eb185aade064a813bc0b7f42de02595523103ca4", None)
CATDOG_TEST_SHARE = 0.1  # the paper splits 9:1
NEITHER = 2  # HSOL's classes on the hub: 0 hate, 1 offensive, 2 neither
HSOL_TEST_SHARE = 1247 / 4159  # of each class; the size of the paper's test set
_HANDLE = re.compile(r"@\w+")
CLEAR_RATING = 0.5  # of 4; a mean rating nearer to 0 is not a clear sentiment
SNIPPETS_TEST = 1500
SNIPPETS_DEV = 500


@TASKS.register("ag_news")
class AgNews(TextTask):
    """11,106 / 10,000 / 7,600 news items in four topics.

    Data folder: very likely the paper's own sample, lower-cased descriptions without titles. Hub:
    a seeded sample of those sizes, titles and case kept, so numbers differ.
    """

    label_names: ClassVar[tuple[str, ...]] = ("world", "sports", "business", "sci/tech")
    longest: ClassVar[int | None] = 450  # 343 of MiniLM's
    hub: ClassVar[Mapping[Split, HubSource]] = {
        "train": HubSource(*_AG_NEWS, "train"),
        "test": HubSource(*_AG_NEWS, "test"),
    }

    def origin(self, locations: Locations) -> Mapping[Split, Source]:
        """Return the hub's test set and two disjoint samples of its training set."""
        raw = super().origin(locations)
        return {
            "train": _drawn_rows(raw["train"], 0, AG_NEWS_TRAIN),
            "dev": _drawn_rows(raw["train"], AG_NEWS_TRAIN, AG_NEWS_TRAIN + AG_NEWS_DEV),
            "test": raw["test"],
        }


def _drawn_rows(raw: Source, first: int, last: int) -> Source:
    return Derived(
        raw, {"sample": f"{first}-{last}", "seed": 0}, partial(_rows_between, first, last)
    )


def _rows_between(first: int, last: int, raw: Source) -> Iterator[pa.RecordBatch]:
    """Return the rows at places `first` to `last` of a fixed permutation, in the order of `raw`."""
    import numpy as np
    import pyarrow as pa

    table = pa.Table.from_batches(raw.batches())
    order = np.random.default_rng(0).permutation(table.num_rows)
    yield from table.take(np.sort(order[first:last])).to_batches()


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
        return {"train": _share_of(raw, "train"), "test": _share_of(raw, "test")}


def _share_of(raw: Source, split: str) -> Source:
    rule = {"part": split, "test_share": CATDOG_TEST_SHARE}
    return Derived(raw, rule, partial(_drawn_by_row, split == "test"))


def _drawn_by_row(for_test: bool, raw: Source) -> Iterator[pa.RecordBatch]:
    import numpy as np

    from recipe_ray.data.rows import uniform

    row = 0
    for batch in raw.batches():
        numbers = np.arange(row, row + batch.num_rows)
        chosen = (uniform(0, "catdog", numbers) < CATDOG_TEST_SHARE) == for_test
        import pyarrow as pa

        yield batch.filter(pa.array(chosen))
        row += batch.num_rows


@TASKS.register("hsol")
class Hsol(TextTask):
    """Tweets, balanced: 5,824 to train, 2,494 to test, none for dev.

    Both the data folder and the hub give a split rebuilt by the same rules from the same tweets
    (as many of the others as there are "neither"), not the authors' own, and not the same sample.
    The hub's has about 20 fewer: tweets that differ only in a user handle are one.
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
            "train": Derived(raw, {"balanced": "train", "rule": 1}, partial(_balanced, False)),
            "test": Derived(raw, {"balanced": "test", "rule": 1}, partial(_balanced, True)),
        }


def _balanced(for_test: bool, raw: Source) -> Iterator[pa.RecordBatch]:
    """Return the balanced rows of train or test, the two disjoint up to case and punctuation."""
    import numpy as np

    tweets = _distinct(raw)
    generator = np.random.default_rng(0)
    classes = [[text for text, label in tweets if label == wanted] for wanted in (0, 1)]
    size = min(map(len, classes))
    num_test = round(size * HSOL_TEST_SHARE)
    rows: list[tuple[str, int]] = []
    for label, texts in enumerate(classes):
        order = generator.permutation(len(texts))[:size]
        chosen = order[:num_test] if for_test else order[num_test:]
        rows += [(texts[index], label) for index in chosen]
    shuffled = [rows[index] for index in generator.permutation(len(rows))]
    import pyarrow as pa

    yield pa.RecordBatch.from_pydict(
        {"text": [text for text, _ in shuffled], "label": [label for _, label in shuffled]}
    )


def _distinct(raw: Source) -> list[tuple[str, int]]:
    seen: dict[str, tuple[str, int]] = {}
    for row in _tweets(raw):
        text = " ".join(_HANDLE.sub("@user", html.unescape(row["tweet"])).split())
        seen.setdefault(re.sub(r"\W+", " ", text.casefold()).strip(), (text, row["class"]))
    return [(text, 0 if label == NEITHER else 1) for key, (text, label) in seen.items() if key]


def _tweets(raw: Source) -> Iterator[dict[str, Any]]:
    for batch in raw.batches():
        if not {"tweet", "class"} <= set(batch.schema.names):
            names = ", ".join(batch.schema.names)
            raise DataError(f"task 'hsol': expected columns tweet and class, found {names}")
        yield from batch.select(["tweet", "class"]).to_pylist()


@TASKS.register("snippets")
class Snippets(TextTask):
    """8,070 / 500 / 1,500 sentences with a mean rating of at least 0.5 either way.

    Not balanced by hand (50.4 % are negative). The sentences come from the collection that
    SST-2 is made of, so one of the two says nothing new about the other.
    """

    label_names: ClassVar[tuple[str, ...]] = ("negative", "positive")
    longest: ClassVar[int | None] = 100  # 79 of MiniLM's

    def sources(self, locations: Locations) -> Mapping[Split, Source]:
        """Return the files given, else the package's: no data folder has it."""
        return self.given() or self.origin(locations)

    def origin(self, locations: Locations) -> Mapping[Split, Source]:
        """Return three parts of the package's film snippets, disjoint up to punctuation."""
        raw = EmbeddedSource("movieReviewSnippets", locations.cache_dir)
        splits: tuple[Split, ...] = ("train", "dev", "test")
        return {
            split: Derived(raw, {"part": split, "clear": CLEAR_RATING}, partial(_clear_part, split))
            for split in splits
        }


def _clear_part(split: Split, raw: Source) -> Iterator[pa.RecordBatch]:
    import numpy as np

    distinct: dict[str, tuple[str, int]] = {}
    for batch in raw.batches():
        for row in batch.to_pylist():
            if abs(row["rating"]) >= CLEAR_RATING:
                key = re.sub(r"\W+", " ", row["text"].casefold()).strip()
                distinct.setdefault(key, (row["text"], int(row["rating"] > 0)))
    rows = list(distinct.values())
    order = np.random.default_rng(0).permutation(len(rows))
    ends = {"test": (0, SNIPPETS_TEST), "dev": (SNIPPETS_TEST, SNIPPETS_TEST + SNIPPETS_DEV)}
    first, last = ends.get(split, (SNIPPETS_TEST + SNIPPETS_DEV, len(rows)))
    chosen = [rows[index] for index in np.sort(order[first:last])]
    import pyarrow as pa

    yield pa.RecordBatch.from_pydict(
        {"text": [text for text, _ in chosen], "label": [label for _, label in chosen]}
    )
