"""The tasks of `catalog.yaml`, and those of the user's own catalogues.

A new entry is a new task. Those with rules of their own are in `derived.py`, tables that a user
names field by field in `own_data.py`.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from recipe_ray.base.catalog import Catalog, Entry, Kind
from recipe_ray.base.errors import SpecError
from recipe_ray.data.content import BATCH_ROWS
from recipe_ray.data.hub import IMAGE_ROWS, HubPlace
from recipe_ray.tasks.own_data import checked_names
from recipe_ray.tasks.task import SPLITS, TASKS, ImageTask, Split, Task, TextTask


class HubSplits(HubPlace):
    """The splits of a data set on the hub."""

    splits: dict[Split, str] = Field(
        description="our name: the name on the hub; train and test, or dev"
    )

    @model_validator(mode="after")
    def _has_both(self) -> "HubSplits":
        lacking = [split for split in ("train", "test") if split not in self.splits]
        if lacking:
            raise SpecError(
                f"splits: {' and '.join(lacking)} is missing; write {{train: ..., test: ...}} with "
                "the names there (and dev, if there is one)"
            )
        return self


class TaskEntry(Entry):
    """What a catalogue may say of a task."""

    class_names: Annotated[tuple[str, ...], BeforeValidator(checked_names)] = Field(
        description="in the order of the labels, two or more"
    )
    hub: HubSplits | None = Field(None, description="where it is on the hub")
    longest: PositiveInt | None = Field(
        None, description="more tokens than any text has; None: unknown"
    )

    def constants(self, kind: Kind[Any]) -> dict[str, Any]:
        """Return the class variables by name."""
        rows = kind.rows_at_once
        there = self.hub.splits if self.hub else {}
        sources = {split: there[split] for split in SPLITS if split in there}
        return {
            "label_names": self.class_names,
            "hub": {s: self.hub.source(name, rows) for s, name in sources.items() if self.hub},
            **({} if self.longest is None else {"longest": self.longest}),
        }

    def decides(self) -> dict[str, Any]:
        """Return the names of the classes: what a label means."""
        return {"class_names": list(self.class_names)}


CATALOG: Catalog[Task] = Catalog(
    "tasks",
    __name__,
    TaskEntry,
    {
        "text": Kind(TextTask, ("class_names", "hub", "longest"), BATCH_ROWS),
        "images": Kind(ImageTask, ("class_names", "hub"), IMAGE_ROWS),
    },
)
LISTED = CATALOG.of_package(Path(__file__).with_name("catalog.yaml"))
for _name, _task in LISTED.items():
    TASKS.register(_name)(_task)
TASKS.look_also_in(CATALOG.of_user)
