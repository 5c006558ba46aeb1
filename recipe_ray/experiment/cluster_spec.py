"""What a cluster file for `recipe-ray plan --cluster` may say: nodes, prices, overheads, times.

It describes a cluster to reckon with. The files that start one are in `cluster/`.
"""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.limits import NODES
from recipe_ray.base.spec import Spec, explain
from recipe_ray.experiment.demand import Capacity
from recipe_ray.experiment.files import read_mapping
from recipe_ray.experiment.plan import KINDS


class Head(Spec):
    """The head node; with no CPUs it does no training, as in the files of `cluster/`."""

    cpus: float = Field(0, ge=0)
    gpus: float = Field(0, ge=0)
    price_per_hour: float = Field(0, ge=0, description="in any currency, the same everywhere")


class Nodes(Spec):
    """Nodes of one kind."""

    name: str = Field(min_length=1)
    count: PositiveInt = 1
    cpus: float = Field(gt=0, description="of one node")
    gpus: float = Field(0, ge=0, description="of one node")
    price_per_hour: float = Field(0, ge=0, description="of one node")
    interruptions_per_hour: float = Field(
        0, ge=0, description="how often the spot market takes one node away; 0: on demand"
    )


class Overheads(Spec):
    """Seconds that are not a stage's own; the defaults were measured on two idle cores."""

    start_s: float = Field(8.0, ge=0, description="from the command to the first trial; boot too")
    process_s: float = Field(3.0, ge=0, description="a new process for a stage of one worker")
    reuse_s: float = Field(0.6, ge=0, description="such a stage in a process that is there already")
    group_s: float = Field(17.0, ge=0, description="a group of DDP workers, for every stage anew")


class ClusterSpec(Spec):
    """A cluster, and how long stages take on it where the store does not know."""

    nodes: tuple[Nodes, ...] = Field(min_length=1)
    head: Head = Head()
    overheads: Overheads = Overheads()
    stage_seconds: dict[str, float | dict[str, float]] = Field(
        default_factory=dict,
        description="seconds by kind of stage, or by kind and the model's label; they come first",
    )
    measured_factor: float = Field(
        1.0, gt=0, description="seconds on this cluster for each second measured in the store"
    )
    max_nodes: PositiveInt | None = Field(
        None, description="of the first kind, the most that are tried; None: twice `count`, or 8"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        first, *others = (one.count for one in self.nodes)
        NODES.check(max(first, self.max_nodes or 0) + sum(others), "cluster")
        for kind, given in self.stage_seconds.items():
            if kind not in KINDS:
                raise SpecError(f"stage_seconds: {unknown('kind of stage', kind, KINDS)}")
            for seconds in given.values() if isinstance(given, dict) else (given,):
                if seconds <= 0:
                    raise SpecError(f"stage_seconds.{kind}: {seconds:g} is no time; allowed: > 0")
        return self

    @property
    def most_nodes(self) -> int:
        """How many nodes of the first kind are tried."""
        first, *others = (one.count for one in self.nodes)
        return self.max_nodes or min(max(8, 2 * first), NODES.value - sum(others))

    def given_seconds(self, kind: str, model: str) -> float | None:
        """Return what the file says of a kind of stage on a model, None where it says nothing."""
        given = self.stage_seconds.get(kind)
        return given.get(model) if isinstance(given, dict) else given

    def with_nodes(self, count: int) -> "ClusterSpec":
        """Return the cluster with another number of nodes of the first kind."""
        first, *others = self.nodes
        return self.revised(nodes=(first.revised(count=count), *others))

    @property
    def machines(self) -> list[tuple[float, float, float]]:
        """CPUs, GPUs and interruptions an hour of every node that can hold a stage."""
        head = [(self.head.cpus, self.head.gpus, 0.0)] if self.head.cpus else []
        each = [
            (n.cpus, n.gpus, n.interruptions_per_hour) for n in self.nodes for _ in range(n.count)
        ]
        return [*head, *each]

    @property
    def capacity(self) -> Capacity:
        """CPUs and GPUs of all nodes, and of the largest."""
        cpus = [cpus for cpus, _, _ in self.machines]
        gpus = [gpus for _, gpus, _ in self.machines]
        return Capacity(sum(cpus), sum(gpus), max(cpus), max(gpus))

    @property
    def price_per_hour(self) -> float:
        """What all nodes and the head cost an hour."""
        return self.head.price_per_hour + sum(n.count * n.price_per_hour for n in self.nodes)


def load_cluster(path: Path) -> ClusterSpec:
    """Return the cluster that a YAML file describes; raise SpecError naming file and field."""
    values: dict[str, Any] = read_mapping(path, "cluster file", "'nodes'")
    try:
        return ClusterSpec.model_validate(values)
    except ValidationError as error:
        raise explain(error, str(path)) from None
