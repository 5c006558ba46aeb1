"""Downstream tasks: labelled samples that users of a purified model fine-tune on.

The defender never sees any of it. A task says which data and labels it has; `Locations` settles
where they are read from: files given, else the data folder, else the task's own origin (the hub). A
sample is a text (`TextTask`) or an image (`ImageTask`).
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny

from recipe_ray.base.errors import DataError, shortened
from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import NOT_HASHED, Component
from recipe_ray.data.formats import label_of
from recipe_ray.data.hub import HubSource
from recipe_ray.data.image_sources import open_images
from recipe_ray.data.sources import (
    FileSource,
    Locations,
    Source,
    batch_images,
    batch_texts,
    column_of,
    open_path,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from recipe_ray.data.images import ImageSample

logger = logging.getLogger("recipe_ray")
TASKS: Registry[Task] = Registry(
    "task",
    "recipe_ray.tasks",
    own="write {name: file, class_names: [...], path_train: FILE, path_test: FILE}",
)

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
MAX_NAMED = 5  # classes in a warning
HELD_OUT = 0.1  # of train, if a task has no dev data


@dataclass(frozen=True, eq=False)
class Labelled:
    """Samples and their labels, in one order."""

    samples: tuple[Any, ...]
    labels: NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        return len(self.samples)

    def take(self, rows: NDArray[np.int64]) -> Labelled:
        """Return the rows with these indices."""
        return Labelled(tuple(self.samples[row] for row in rows), self.labels[rows])


class Task(Component):
    """A classification task; subclasses name the labels and where the data come from.

    If there are no dev data, dev is the last tenth of a seeded permutation of train. Then train
    leaves those rows out only with `evaluate_on: dev`; `evaluate_on: test` uses it whole.
    """

    holds: ClassVar[str]  # what a sample is: text or image
    label_names: ClassVar[tuple[str, ...]] = ()  # index = label
    hub: ClassVar[Mapping[Split, HubSource]] = {}

    train_size: int | None = Field(default=None, ge=1, description="training samples; None for all")
    test_size: int | None = Field(
        default=None, ge=1, description="test or dev samples; None for all"
    )
    sample_seed: int = Field(default=0, ge=0, description="which samples are drawn or held out")
    path_train: str | None = Field(
        default=None, description="own data: a file or a folder", json_schema_extra=NOT_HASHED
    )
    path_dev: str | None = Field(
        default=None,
        description="own dev data; None: a part of train is held out",
        json_schema_extra=NOT_HASHED,
    )
    path_test: str | None = Field(
        default=None, description="own test data", json_schema_extra=NOT_HASHED
    )
    label_column: str = "label"
    revision: str | None = Field(
        default=None,
        description="hub commit or branch; None for the one in the code",
        json_schema_extra=NOT_HASHED,
    )
    evaluate_on: Literal["test", "dev"] = Field(
        default="test", description="dev for choosing hyper-parameters"
    )

    def kind_of_samples(self) -> tuple[str, str]:
        """Return a clause for people and what a sample is: text or image."""
        return f"task {self.label()!r} holds {self.holds}s", self.holds

    def may_be_cut(self, max_length: int, triggers: Sequence[str] = ()) -> bool:
        """Tell whether a sample with a trigger may exceed `max_length` tokens; no image does."""
        return False

    def trigger_places(self, max_length: int, triggers: Sequence[str] = ()) -> dict[str, int]:
        """Return what a stage's identity says of the triggers' places; nothing if no text is cut.

        Version 1 was among all words of a text, so the cut could remove the trigger.
        """
        return {"trigger_places": 2} if self.may_be_cut(max_length, triggers) else {}

    @abstractmethod
    def read(self, batch: pa.RecordBatch, owner: str, before: int) -> list[Any]:
        """Return the samples of a batch of rows; `before` rows came earlier.

        Raises DataError, naming `owner` and the row, for one that is not a sample.
        """

    def opened(self, path: str) -> Source:
        """Return the source of the user's own file or folder."""
        return open_path(path, f"task {self.name!r}")

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the label names; the index is the label."""
        return self.label_names

    @property
    def num_labels(self) -> int:
        """Return the number of classes."""
        return len(self.classes)

    def sources(self, locations: Locations) -> Mapping[Split, Source]:
        """Return the source of train, test and, if there is one, dev; nothing is read yet.

        All come from one place. Raises DataError for a path or data folder that does not exist.
        """
        return self.given() or self.data_folder(locations) or self.origin(locations)

    def given(self) -> Mapping[Split, Source]:
        """Return the sources of the user's own files, or nothing if no path is given."""
        paths = {"train": self.path_train, "dev": self.path_dev, "test": self.path_test}
        if not any(paths.values()):
            return {}
        missing = [f"path_{split}" for split in ("train", "test") if not paths[split]]
        if missing:
            raise DataError(
                f"task {self.name!r}: {' and '.join(missing)} is missing; own data need both "
                "path_train and path_test"
            )
        return {split: self.opened(path) for split in SPLITS if (path := paths[split])}

    def data_folder(self, locations: Locations) -> Mapping[Split, Source]:
        """Return the files of the data folder, or nothing unless it has both train and test."""
        files = {split: locations.data_file(f"{self.name}_{split}") for split in SPLITS}
        if files["train"] is None or files["test"] is None:
            return {}
        owner = f"task {self.name!r}"
        return {split: FileSource((file,), owner) for split, file in files.items() if file}

    def origin(self, locations: Locations) -> Mapping[Split, Source]:
        """Return the sources on the hub."""
        if not self.hub:
            raise DataError(f"task {self.name!r}: give path_train and path_test")
        lacking = f"{self.name}_train.parquet or {self.name}_test.parquet"
        note = f"the data folder has no {lacking}" if locations.data_dir else ""
        return {
            split: replace(source, revision=self.revision or source.revision, note=note)
            for split, source in self.hub.items()
        }

    def identity_at(self, locations: Locations) -> dict[str, Any]:
        """Return the component's identity with the content of train and of the evaluated split."""
        return {**self.identity(), "sources": self.content_at(locations)}

    def content_at(self, locations: Locations) -> dict[str, Any]:
        """Return the identity of train and of the evaluated split, independent of their place."""
        sources = self.sources(locations)
        unused = "dev" if self.evaluate_on == "test" else "test"
        return {split: source.identity() for split, source in sources.items() if split != unused}

    def describe(self, locations: Locations) -> str:
        """Return where train and the evaluated split come from, for people."""
        sources = self.sources(locations)
        evaluated = sources.get(self.evaluate_on)
        return (
            f"train: {sources['train'].describe()}; {self.evaluate_on}: "
            f"{evaluated.describe() if evaluated else self.held_out_of_train()}"
        )

    def held_out_of_train(self) -> str:
        """Return, for people, what is held out of the training data."""
        return f"{HELD_OUT:.0%} of train, seed {self.sample_seed}"

    def load(self, split: Split, locations: Locations) -> Labelled:
        """Return one split in the order of its source, capped by a seeded sample.

        Raises DataError for data that cannot be read, a label out of range, an empty split, train
        of one class alone, and a class without a sample in test or dev. No message shows a text.
        """
        import numpy as np

        rows = self._rows(split, self.sources(locations))
        cap = self.train_size if split == "train" else self.test_size
        if cap is not None and len(rows) > cap:
            generator = np.random.default_rng(self.sample_seed)
            rows = rows.take(np.sort(generator.choice(len(rows), cap, replace=False)))
        self._check(rows, split)
        return rows

    def whole(self, split: Split, sources: Mapping[Split, Source]) -> Labelled:
        """Return a split as its file has it, nothing held out of it for dev."""
        return self._read(sources[split], split)

    def _rows(self, split: Split, sources: Mapping[Split, Source]) -> Labelled:
        import numpy as np

        holds_out = "dev" not in sources
        if split == "test" or not holds_out or (split == "train" and self.evaluate_on == "test"):
            return self.whole(split, sources)
        whole = self.whole("train", sources)
        order = np.random.default_rng(self.sample_seed).permutation(len(whole))
        kept = len(whole) - round(len(whole) * HELD_OUT)
        return whole.take(np.sort(order[:kept] if split == "train" else order[kept:]))

    def _read(self, source: Source, split: Split) -> Labelled:
        import numpy as np

        owner = f"task {self.name!r} ({split})"
        samples: list[Any] = []
        labels: list[int] = []
        for batch in source.batches():
            before = len(samples)
            samples += self.read(batch, owner, before)
            values = column_of(batch, self.label_column, owner).to_pylist()
            labels += [
                self._label(value, f"{owner}: row {row}")
                for row, value in enumerate(values, before + 1)
            ]
        return Labelled(tuple(samples), np.array(labels, dtype=np.int64))

    @cached_property
    def label_meanings(self) -> Mapping[tuple[type, Any], int]:
        """Return the class of each label, keyed by the type and value of `label_of`.

        Names come first: a class may be called "1". The classes' own numbers count if no class is
        named by the number of another.
        """
        named = typed_labels(self.classes)
        numbers = range(self.num_labels)
        found: dict[tuple[type, Any], int] = {}
        if all(named.get((int, number), number) == number for number in numbers):
            found.update({(int, number): number for number in numbers})
        if not any(kind is bool for kind, _ in named):
            found.update({(bool, bool(number)): number for number in numbers[:2]})
        return {**found, **named}

    def _label(self, value: Any, where: str) -> int:
        label = label_of(value)
        found = self.label_meanings.get((type(label), label))
        if found is None:
            allowed = ", ".join(f"{number} {name}" for number, name in enumerate(self.classes))
            said = shortened(allowed)
            raise DataError(f"{where}: label {str(value)[:20]!r} is not one of: {said}")
        return found

    def _check(self, rows: Labelled, split: Split) -> None:
        import numpy as np

        if not len(rows):
            raise DataError(f"task {self.name!r}: the {split} split is empty")
        counts = np.bincount(rows.labels, minlength=self.num_labels)
        lacking = [self.classes[label] for label in np.flatnonzero(counts == 0)]
        if split == "train":
            self._check_train(rows, lacking)
        elif lacking:
            raise DataError(
                f"task {self.name!r}: no sample of {', '.join(map(repr, lacking))} among the "
                f"{len(rows)} of the {split} split; every class needs one to measure an ASR"
            )

    def _check_train(self, rows: Labelled, lacking: list[str]) -> None:
        if len(lacking) == self.num_labels - 1:
            capped = "" if self.train_size is None else f", or raise train_size ({self.train_size})"
            raise DataError(
                f"task {self.name!r}: all {len(rows)} samples of the train split are of "
                f"{self.classes[rows.labels[0]]!r}: nothing can be learned from one class; give "
                f"samples of every class{capped}"
            )
        if lacking:
            named = ", ".join(map(repr, lacking[:MAX_NAMED])) + ", ..." * (len(lacking) > MAX_NAMED)
            logger.warning(
                "task %r: no sample of %s among the %d of the train split: it cannot be learned, "
                "and an ASR towards it says little",
                *(self.name, named, len(rows)),
            )


def typed_labels(labels: Iterable[Any]) -> dict[tuple[type, Any], int]:
    """Return the places of labels, keyed by the type and value of `label_of`."""
    meant = [label_of(label) for label in labels]  # True == 1, so the type counts, too
    return {(type(label), label): number for number, label in enumerate(meant)}


AnyTask = Annotated[SerializeAsAny[Task], BeforeValidator(TASKS.parse)]


class TextTask(Task):
    """Labelled texts, stripped and never empty; a sample is a string."""

    holds: ClassVar[str] = "text"

    # of a fixed data set: no text has more tokens, special ones included, with some to spare for
    # another vocabulary than WordPiece; None if that is not known
    longest: ClassVar[int | None] = None

    text_column: str = "text"

    def may_be_cut(self, max_length: int, triggers: Sequence[str] = ()) -> bool:
        """Tell whether a text with a trigger may be more than `max_length` tokens.

        Own data may be anything. A trigger has at most one token per byte and one for the space.
        """
        if self.longest is None or self.path_train or self.path_dev or self.path_test:
            return True
        return self.longest + max((len(t.encode()) + 1 for t in triggers), default=0) > max_length

    def read(self, batch: pa.RecordBatch, owner: str, before: int) -> list[str]:
        """Return the texts of a batch."""
        if self.text_column == self.label_column:
            raise DataError(f"{owner}: text_column and label_column are both {self.text_column!r}")
        texts = list(batch_texts(batch, self.text_column, owner, before))
        if "" in texts:
            raise DataError(f"{owner}: row {before + texts.index('') + 1} has no text")
        return texts


class ImageTask(Task):
    """Labelled images; a sample is an `ImageSample`, with its label kept apart.

    Own data are .parquet or .tar (WebDataset) shards, or a folder of class folders whose names are
    those of the classes, or their labels.
    """

    holds: ClassVar[str] = "image"

    image_column: str = "image"

    def opened(self, path: str) -> Source:
        """Return the source of the user's own Parquet, tar shards or class folders."""
        return open_images(path, f"task {self.name!r}", "label", by_name=True)

    def read(self, batch: pa.RecordBatch, owner: str, before: int) -> list[ImageSample]:
        """Return the encoded images of a batch."""
        from recipe_ray.data.images import ImageSample

        return [ImageSample(data) for data in batch_images(batch, self.image_column, owner, before)]
