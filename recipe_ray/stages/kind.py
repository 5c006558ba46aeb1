"""What a kind of stage says of itself, and what it is asked while a grid becomes stages.

A kind is only a class registered in STAGES (`stage.py`). The fields of a grid, the order of stages,
what a worker gets and how a report shows it are read from the class.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from recipe_ray.base.spec import Spec
from recipe_ray.data.sources import Locations
from recipe_ray.models.family import ModelRef

S = TypeVar("S", bound=Spec)
Unit = Literal["percent", "number"]
# a table of the report that kinds may share: ASR with its floors, neurons by trigger, or any metric
Layout = Literal["attack success", "neurons", "metrics"]


@dataclass(frozen=True)
class Resources:
    """What a stage gets by default."""

    workers: int = 1  # one: the trial's own process
    cpus_per_worker: int = 1
    gpus_per_worker: float = 0


@dataclass(frozen=True)
class ShownMetric:
    """One column of a report: a metric of the result rows; "percent" if it is a fraction."""

    metric: str
    title: str
    unit: Unit = "percent"


@dataclass(frozen=True)
class Shown:
    """The section of the report that shows what a kind measures."""

    columns: tuple[ShownMetric, ...]
    explanation: str = ""
    layout: Layout = "metrics"


class Data(Protocol):
    """A corpus or a task."""

    def content_at(self, locations: Locations) -> dict[str, Any]:
        """Return the identity of the data, independent of their place."""
        ...


@dataclass(frozen=True)
class Planning:
    """Holds what is looked up and made once while a grid becomes stages."""

    locations: Locations
    stages: dict[Any, Any] = field(default_factory=dict)  # by kind and fields
    contents: dict[Any, dict[str, Any]] = field(default_factory=dict)  # by corpus or task


@dataclass(frozen=True)
class Point:
    """One point of a grid: what a kind of stage sees when it is asked for its stages there.

    `chosen` holds one value of each axis, by the name of its field in the grid. `entry` is what
    ends the cell (a task, a probe); None for kinds that make a PTM.
    """

    experiment: Any
    block: Any
    model: ModelRef
    chosen: Mapping[str, Any]
    planning: Planning
    seed: int = 0
    entry: Any = None

    def setting(self, name: str) -> Any:
        """Return a field of the block, or the experiment's if the block does not have it."""
        own = getattr(self.block, name, None)
        return getattr(self.experiment, name) if own is None else own

    def content(self, data: Data) -> dict[str, Any]:
        """Return the identity of a corpus's or a task's data; raise DataError if there are none."""
        known = self.planning.contents
        if data not in known:
            known[data] = data.content_at(self.planning.locations)
        return known[data]

    def make(self, kind: type[S], *, content: dict[str, Any], **fields: Any) -> S:
        """Return the stage of a kind on this model; the same object for the same fields."""
        # without the content, which was looked up for these fields
        wanted = (kind, self.model, *sorted(fields.items()))
        made: dict[Any, S] = self.planning.stages
        whole = {**fields, "model": self.model, "content": content}
        try:
            known = made.get(wanted)
        except TypeError:  # a field cannot be hashed: an equal stage has the same key anyway
            return kind(**whole)
        if known is None:
            known = made[wanted] = kind(**whole)
        return known
