"""What a stage needs of a cluster, what a cluster has, and whether the one fits the other.

The agenda asks it; launchers turn a demand into what Ray reserves.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from recipe_ray.base.errors import SpecError
from recipe_ray.experiment.spec import Launch
from recipe_ray.stages.stage import Stage

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
        """CPUs of all workers, and of Ray Data where it reads at the same time."""
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
    workers: int = getattr(launch.workers, stage.name)
    streams = launch.stream and bool(stage.corpora())
    return Demand(
        workers,
        getattr(launch.cpus_per_worker, stage.name),
        getattr(launch.gpus_per_worker, stage.name),
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
