"""Which stage next: parents first, the longest chain first, never more than the cluster holds.

It keeps its own account of CPUs and GPUs, because Tune does not know the DDP workers that a trial
starts. It neither runs stages nor knows Ray.
"""

from collections.abc import Callable, Collection, Mapping

from recipe_ray.distributed.demand import Capacity, Demand
from recipe_ray.stages.stage import Stage


class Agenda:
    """The stages that are still to do, those that run, and what both leave of the cluster."""

    def __init__(
        self,
        stages: Mapping[str, Stage],
        done: Collection[str],
        demand: Callable[[Stage], Demand],
        capacity: Callable[[], Capacity],
    ) -> None:
        self._demand = demand
        self._capacity = capacity
        self._committed = set(done)
        missing = [stage for key, stage in stages.items() if key not in self._committed]
        self._children: dict[str, list[Stage]] = {stage.key: [] for stage in missing}
        for stage in missing:
            if stage.parent is None or stage.parent.key in self._committed:
                continue
            if stage.parent.key not in self._children:  # it would wait for ever
                raise ValueError(f"{stage.artifact.folder}: its parent is neither done nor planned")
            self._children[stage.parent.key].append(stage)
        weight = {stage.key: self._weight(stage) for stage in missing}
        # a stable sort: stages of one weight stay in the order of the plan
        self._waiting = sorted(missing, key=lambda stage: weight[stage.key], reverse=True)
        self._running: dict[str, Stage] = {}
        self._elsewhere: dict[str, Stage] = {}

    @property
    def is_over(self) -> bool:
        """Whether every stage is committed or failed; what runs may have to be run again."""
        return not (self._waiting or self._running or self._elsewhere)

    @property
    def running(self) -> list[Stage]:
        """The stages that run now."""
        return list(self._running.values())

    @property
    def elsewhere(self) -> list[Stage]:
        """The stages that another driver makes: they take none of our room."""
        return list(self._elsewhere.values())

    def next(self) -> Stage | None:
        """Return a stage that may start now and count it as running, None where there is none.

        Where the most urgent does not fit, one that as long a chain waits for may fill the gap, but
        no lesser one: small last stages would keep taking the room that a large early one needs.
        """
        free = self._free()
        held_for = -1  # the chain behind the first stage that is ready and finds no room
        for stage in self._waiting:
            if stage.parent is not None and stage.parent.key not in self._committed:
                continue
            height = self._height(stage)
            if height < held_for:
                return None
            demand = self._demand(stage)
            if demand.cpus <= free[0] and demand.gpus <= free[1]:
                self._waiting.remove(stage)
                self._running[stage.key] = stage
                return stage
            held_for = max(held_for, height)
        return None

    def commit(self, stage: Stage) -> None:
        """Note that a stage, of here or elsewhere, is in the store: its children may start."""
        self._end(stage)
        self._committed.add(stage.key)

    def fail(self, stage: Stage) -> list[Stage]:
        """Note that a stage, of here or elsewhere, failed; drop its descendants and return them."""
        self._end(stage)
        lost = self._below(stage)
        keys = {child.key for child in lost}
        self._waiting = [waiting for waiting in self._waiting if waiting.key not in keys]
        return lost

    def set_aside(self, stage: Stage) -> None:
        """Leave a stage that was about to run to another driver."""
        self._end(stage)
        self._elsewhere[stage.key] = stage

    def take_back(self, stage: Stage) -> None:
        """Let a stage wait again: its process was lost, or another driver gave it up."""
        self._end(stage)
        self._waiting.append(stage)
        self._waiting.sort(key=self._weight, reverse=True)

    def _end(self, stage: Stage) -> None:
        for place in (self._running, self._elsewhere):
            place.pop(stage.key, None)

    def _free(self) -> tuple[float, float]:
        capacity = self._capacity()
        demands = [self._demand(stage) for stage in self._running.values()]
        slack = 1e-6  # quarters of a GPU do not add up exactly
        cpus = capacity.cpus - sum(demand.cpus for demand in demands)
        return cpus + slack, capacity.gpus - sum(demand.gpus for demand in demands) + slack

    def _weight(self, stage: Stage) -> tuple[int, int]:
        return self._height(stage), len(self._below(stage))

    def _height(self, stage: Stage) -> int:
        return max((1 + self._height(child) for child in self._children[stage.key]), default=0)

    def _below(self, stage: Stage) -> list[Stage]:
        children = self._children[stage.key]
        return [*children, *(deeper for child in children for deeper in self._below(child))]
