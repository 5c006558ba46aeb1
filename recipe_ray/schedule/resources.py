"""What a stage needs, what a cluster has or is said to have, and whether the one fits the other.

The queue uses it; launchers turn a demand into what Ray reserves. A cluster file for
`recipe-ray plan --cluster` names nodes, prices, overheads and times. It only describes a cluster;
the files that start one are in `cluster/`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PositiveInt, ValidationError, model_validator

from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.limits import NODES
from recipe_ray.base.spec import Spec, explain
from recipe_ray.experiment.files import read_mapping
from recipe_ray.experiment.spec import Launch
from recipe_ray.stages.stage import STAGES, Stage

# Ray Data reads and decodes while DDP workers train; without a core of its own it hangs
DATA_CPUS = 1


@dataclass(frozen=True)
class Demand:
    """CPUs and GPUs of one stage while it runs; `nested`: as a DDP worker group of its own."""

    workers: int
    cpus_per_worker: int
    gpus_per_worker: float
    nested: bool
    data_cpus: int = 0

    @property
    def cpus(self) -> float:
        """CPUs of all workers, and of Ray Data if it reads at the same time."""
        return self.workers * self.cpus_per_worker + self.data_cpus

    @property
    def gpus(self) -> float:
        """GPUs of all workers."""
        return self.workers * self.gpus_per_worker


@dataclass(frozen=True)
class Capacity:
    """CPUs and GPUs of a cluster, and of its largest nodes."""

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float


def demand_of(stage: Stage, launch: Launch) -> Demand:
    """Return what a stage needs; one worker means the trial's own process."""
    kind, default = stage.name, stage.resources
    workers = launch.workers.get(kind, default.workers)
    streams = launch.stream and bool(stage.corpora())
    return Demand(
        workers,
        launch.cpus_per_worker.get(kind, default.cpus_per_worker),
        launch.gpus_per_worker.get(kind, default.gpus_per_worker),
        nested=workers > 1 or streams,
        data_cpus=DATA_CPUS if streams else 0,
    )


def check_fits(stages: Iterable[Stage], launch: Launch, capacity: Capacity) -> None:
    """Raise SpecError for the first stage that the cluster could never run."""
    for stage in stages:
        demand = demand_of(stage, launch)
        asked = f"launch.workers.{stage.name} = {demand.workers}"
        if demand.gpus and not capacity.gpus:
            raise SpecError(
                f"launch.gpus_per_worker.{stage.name} = {demand.gpus_per_worker:g}, but the "
                "cluster has no GPU; set it to 0 to train on CPUs"
            )
        for what, field, each, total, node in (
            (
                "cpus",
                f"launch.cpus_per_worker.{stage.name}",
                demand.cpus_per_worker,
                capacity.cpus,
                capacity.node_cpus,
            ),
            (
                "gpus",
                f"launch.gpus_per_worker.{stage.name}",
                demand.gpus_per_worker,
                capacity.gpus,
                capacity.node_gpus,
            ),
        ):
            needed = getattr(demand, what)
            extra = " and one CPU for Ray Data" if what == "cpus" and demand.data_cpus else ""
            if needed > total:
                raise SpecError(
                    f"{asked} with {field} = {each:g}{extra} needs {needed:g} "
                    f"{what.upper()[:-1]}s, the cluster has {total:g}; use fewer workers"
                )
            if each > node:
                raise SpecError(f"{field} = {each:g}, but the largest node has {node:g}")


class Head(Spec):
    """The head node; with no CPUs it does no training, as in the files of `cluster/`."""

    cpus: float = Field(0, ge=0)
    gpus: float = Field(0, ge=0)
    price_per_hour: float = Field(0, ge=0, description="in any currency, the same everywhere")


class Nodes(Spec):
    """Nodes of one kind."""

    name: str = Field(min_length=1)
    count: PositiveInt = 1
    cpus: float = Field(gt=0, description="CPUs of one node")
    gpus: float = Field(0, ge=0, description="GPUs of one node")
    price_per_hour: float = Field(0, ge=0, description="of one node")
    interruptions_per_hour: float = Field(
        0, ge=0, description="how often the spot market takes one node away; 0: on demand"
    )


class Overheads(Spec):
    """Seconds that are not a stage's own; the defaults were measured on two idle cores."""

    start_s: float = Field(
        8.0, ge=0, description="from the command to the first trial; also the boot of a node"
    )
    process_s: float = Field(3.0, ge=0, description="a new process for a stage of one worker")
    reuse_s: float = Field(0.6, ge=0, description="such a stage in an existing process")
    group_s: float = Field(17.0, ge=0, description="a new group of DDP workers, for every stage")


class ClusterSpec(Spec):
    """A cluster, and how long stages take on it if the store does not know."""

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
        None, description="most nodes of the first kind that are tried; None: twice `count`, or 8"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        first, *others = (one.count for one in self.nodes)
        NODES.check(max(first, self.max_nodes or 0) + sum(others), "cluster")
        for kind, given in self.stage_seconds.items():
            if kind not in STAGES:
                raise SpecError(f"stage_seconds: {unknown('kind of stage', kind, STAGES)}")
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
        """Return what the file says of a kind of stage on a model, None if it says nothing."""
        given = self.stage_seconds.get(kind)
        return given.get(model) if isinstance(given, dict) else given

    def with_nodes(self, count: int) -> "ClusterSpec":
        """Return the cluster with another number of nodes of the first kind."""
        first, *others = self.nodes
        return self.revised(nodes=(first.revised(count=count), *others))

    @property
    def machines(self) -> list[tuple[float, float, float]]:
        """CPUs, GPUs and interruptions per hour of every node that can hold a stage."""
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
        """The cost of all nodes and the head per hour."""
        return self.head.price_per_hour + sum(n.count * n.price_per_hour for n in self.nodes)


def load_cluster(path: Path) -> ClusterSpec:
    """Return the cluster that a YAML file describes; raise SpecError naming file and field."""
    values: dict[str, Any] = read_mapping(path, "cluster file", "'nodes'")
    try:
        return ClusterSpec.model_validate(values)
    except ValidationError as error:
        raise explain(error, str(path)) from None
