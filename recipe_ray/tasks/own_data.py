"""The user's own labelled texts or images: classes, and which value in the file means each.

The data may be one table, of which a share of every class is held out as test data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from recipe_ray.base.errors import SpecError, shortened
from recipe_ray.base.limits import CLASSES
from recipe_ray.base.spec import HASHED_WHEN_SET, NOT_HASHED
from recipe_ray.data.formats import label_of
from recipe_ray.data.sources import Source
from recipe_ray.tasks.task import (
    TASKS,
    ImageTask,
    Labelled,
    Split,
    Task,
    TextTask,
    typed_labels,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def checked_names(names: Any) -> Any:
    """Return names of classes; raise SpecError, saying which is wrong, for another list."""
    example = "as in [negative, positive]"
    if isinstance(names, str) or not isinstance(names, (list, tuple)):
        raise SpecError(f"{names!r} is not a list of names; allowed: two or more, {example}")
    CLASSES.check(len(names), "class_names")
    for name in names:
        if not isinstance(name, str):
            raise SpecError(f"{name!r} is not a name; write names in quotes")
        if not name.strip():
            raise SpecError(f"an empty name among {_shown(names)}; every class needs one")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise SpecError(f"{twice[0]!r} is given twice; every class needs a name of its own")
    if len(typed_labels(names)) < len(names):
        raise SpecError(f"{_shown(names)}: two of them are ways to write one label; keep one")
    if len(names) < 2:
        given = f"only {names[0]!r}" if names else "none"
        raise SpecError(f"{given} given; a task needs two classes or more, {example}")
    return names


def _shown(names: Sequence[Any]) -> str:
    return shortened(repr(list(names)))


class OwnData(Task):
    """Fields and rules that own texts and own images share."""

    class_names: Annotated[tuple[str, ...], BeforeValidator(checked_names)] = Field(
        description="in the order of the labels, two or more"
    )
    path_train: str = Field(description="training data", json_schema_extra=NOT_HASHED)
    path_test: str | None = Field(
        default=None,
        description="test data; None only with test_share",
        json_schema_extra=NOT_HASHED,
    )
    test_share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="of each class of path_train, held out as test data (seed: sample_seed)",
        json_schema_extra=HASHED_WHEN_SET,
    )
    label_values: tuple[int | str, ...] | None = Field(
        default=None,
        description="what stands for each class in the label column; None: 0, 1, ... or its name",
        json_schema_extra=HASHED_WHEN_SET,
    )

    @model_validator(mode="after")
    def _fits(self) -> OwnData:
        if self.label_values is not None:
            different = typed_labels(self.label_values)
            if not len(self.label_values) == len(different) == self.num_labels:
                raise SpecError(
                    f"label_values: {_shown(self.label_values)} for {self.num_labels} class_names; "
                    "give one for each class, all different"
                )
        if self.test_share is None and self.path_test is None:
            raise SpecError(
                "path_test is missing; give test data, or test_share to hold out a part of "
                "path_train"
            )
        if self.test_share is not None and self.path_test is not None:
            raise SpecError("path_test and test_share are both given; keep one of them")
        return self

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names given."""
        return self.class_names

    def given(self) -> Mapping[Split, Source]:
        """Return the sources of the files; test data have none if a share is held out."""
        if self.test_share is None:
            return super().given()
        paths: dict[Split, str | None] = {"train": self.path_train, "dev": self.path_dev}
        return {split: self.opened(path) for split, path in paths.items() if path}

    def held_out_of_train(self) -> str:
        """Return, for people, what is held out of the training data."""
        if self.test_share is None or self.evaluate_on == "dev":
            return super().held_out_of_train()
        return f"{self.test_share:.0%} of each class of train, seed {self.sample_seed}"

    def whole(self, split: Split, sources: Mapping[Split, Source]) -> Labelled:
        """Return a split as its file has it, or its part of the one table."""
        import numpy as np

        if self.test_share is None or split == "dev":
            return super().whole(split, sources)
        rows = super().whole("train", sources)
        test = share_of_each(rows.labels, self.test_share, self.sample_seed)
        others = np.setdiff1d(np.arange(len(rows)), test)
        return rows.take(test if split == "test" else others)

    @cached_property
    def label_meanings(self) -> Mapping[tuple[type, Any], int]:
        """Return the class of each label; truth values mean 1 and 0 unless they are listed."""
        if self.label_values is None:
            return super().label_meanings
        found = typed_labels(self.label_values)
        for number in (0, 1):
            if (int, number) in found:
                found.setdefault((bool, bool(number)), found[int, number])
        return found

    def identity(self) -> dict[str, Any]:
        """Return the identity, with a mark if a class has the number of another as its name.

        Before the mark existed, such a number in a Parquet file, or a `1.0`, meant the other class.
        """
        ours = super().identity()
        crossed = any(
            isinstance(label := label_of(name), int) and label != place and label in numbers
            for place, name in enumerate(self.class_names)
            for numbers in (range(self.num_labels),)
        )
        return {**ours, "labels": 2} if crossed and self.label_values is None else ours


def share_of_each(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Return the sorted rows of a seeded sample with the same share of every class.

    At least one row of a class that has two or more, and never all of them.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    taken = []
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        taken.append(rows[: min(max(1, round(len(rows) * share)), len(rows) - 1)])
    return np.sort(np.concatenate(taken)) if taken else np.empty(0, dtype=np.int64)


@TASKS.register("file")
class OwnTask(OwnData, TextTask):
    """Own tables, such as .csv; labels are numbers from 0 or the names of the classes."""


@TASKS.register("images")
class OwnImageTask(OwnData, ImageTask):
    """Own class folders, .parquet or .tar shards; labels are numbers from 0 or class names."""

    version: ClassVar[int] = 2  # 1 clipped 16 bits to white and did not turn images upright
