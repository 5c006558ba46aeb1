"""Which stage next: parents first, the longest chain first, never more than the cluster holds.

It keeps its own account of CPUs and GPUs, because Tune does not know the DDP workers that a trial
starts. It neither runs stages nor knows Ray, so `forecast.py` asks the same queue as a sweep.
Every answer costs O(log n) for n stages, so a grid of 10,000 cells is not slower per stage.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush

from recipe_ray.schedule.durations import TrialBatching
from recipe_ray.schedule.resources import Capacity, Demand
from recipe_ray.stages.stage import Stage

_SLACK = 1e-6  # quarters of a GPU do not add up exactly
# (-height, -descendants, place in the plan): the smallest is the most urgent
_Urgency = tuple[int, int, int]


@dataclass
class _Slot:
    """A share of the cluster, and the stages that use it one after the other."""

    demand: Demand
    keys: set[str] = field(default_factory=set)


class StageQueue:
    """The stages that are still to do, those that run, and the free part of the cluster."""

    def __init__(
        self,
        stages: Mapping[str, Stage],
        done: Collection[str],
        demand: Callable[[Stage], Demand],
        capacity: Callable[[], Capacity],
    ) -> None:
        self._capacity = capacity
        self._pace = TrialBatching()
        committed = set(done)
        self._waiting = {key: stage for key, stage in stages.items() if key not in committed}
        self._children = _children_of(self._waiting, committed)
        self._urgency = _urgencies(self._waiting, self._children)
        self._demand = {key: demand(stage) for key, stage in self._waiting.items()}
        # those whose parent is committed, by what they need: few kinds of need, with one heap each
        self._ready: dict[Demand, list[tuple[_Urgency, Stage]]] = {}
        self._slots: dict[str, _Slot] = {}
        self._running: dict[str, Stage] = {}
        self._elsewhere: dict[str, Stage] = {}
        self._first_place = 0
        self._used_cpus = 0.0
        self._used_gpus = 0.0
        for stage in _roots(self._waiting):
            self._get_ready(stage)

    @property
    def is_over(self) -> bool:
        """Whether every stage is committed or failed; a running one may have to be run again."""
        return not (self._waiting or self._running or self._elsewhere)

    @property
    def running(self) -> list[Stage]:
        """The stages that run now, or wait for their turn in a batch that does."""
        return list(self._running.values())

    @property
    def elsewhere(self) -> list[Stage]:
        """The stages that another driver makes: they take none of our room."""
        return list(self._elsewhere.values())

    def is_running(self, key: str) -> bool:
        """Tell whether the stage of this key is one of those."""
        return key in self._running

    def next(self) -> Stage | None:
        """Return a stage that may start now and count it as running, None if there is none.

        If the most urgent does not fit, one with an equally long chain may fill the gap, but
        no other: small last stages would keep taking the room that a large early one needs.
        """
        if not any(self._ready.values()):
            return None
        capacity = self._capacity()
        cpus = capacity.cpus - self._used_cpus + _SLACK
        gpus = capacity.gpus - self._used_gpus + _SLACK
        held_for = -1  # the chain behind the first stage that is ready and finds no room
        heads = sorted((ready[0][0], demand) for demand, ready in self._ready.items() if ready)
        for (negative_height, _, _), demand in heads:
            if -negative_height < held_for:
                return None
            if demand.cpus <= cpus and demand.gpus <= gpus:
                self._used_cpus += demand.cpus
                self._used_gpus += demand.gpus
                return self._start(_Slot(demand))
            held_for = max(held_for, -negative_height)
        return None

    def next_batch(self) -> list[Stage]:
        """Return what may start now in one process: a stage, or several short ones in turn.

        All of a batch need the same, are ready and count as running. It is empty if `next` is
        None, and one stage if such stages take long, or if their time is not known yet.
        """
        first = self.next()
        if first is None:
            return []
        slot = self._slots[first.key]
        ready, places = len(self._ready[slot.demand]) + 1, self._places(slot.demand)
        size = 1 if slot.demand.nested else self._pace.batch_size(first, ready, places)
        return [first, *(self._start(slot) for _ in range(size - 1))]

    def commit(self, stage: Stage, took_s: float | None = None) -> None:
        """Note that a stage is in the store, from here or elsewhere: its children may start.

        `took_s`: seconds that it ran here, from which the size of later batches follows.
        """
        self._leave(stage)
        if took_s is not None:
            self._pace.note(stage, took_s)
        for child in self._children[stage.key]:
            self._get_ready(child)

    def fail(self, stage: Stage) -> list[Stage]:
        """Note that a stage failed, here or elsewhere; drop its descendants and return them."""
        self._leave(stage)
        lost = _below(stage, self._children)
        for child in lost:
            del self._waiting[child.key]
        return lost

    def set_aside(self, stage: Stage) -> None:
        """Leave a stage that was about to run to another driver."""
        self._leave(stage)
        self._elsewhere[stage.key] = stage

    def take_back(self, stage: Stage) -> None:
        """Let a stage wait again: its process was lost, or another driver gave it up."""
        self._leave(stage)
        self._waiting[stage.key] = stage
        # before its equals: it may have a checkpoint to continue from
        self._first_place -= 1
        height, descendants, _ = self._urgency[stage.key]
        self._urgency[stage.key] = (height, descendants, self._first_place)
        self._get_ready(stage)

    def _get_ready(self, stage: Stage) -> None:
        entry = (self._urgency[stage.key], stage)
        heappush(self._ready.setdefault(self._demand[stage.key], []), entry)

    def _start(self, slot: _Slot) -> Stage:
        _, stage = heappop(self._ready[slot.demand])
        del self._waiting[stage.key]
        slot.keys.add(stage.key)
        self._slots[stage.key] = slot
        self._running[stage.key] = stage
        return stage

    def _leave(self, stage: Stage) -> None:
        if self._elsewhere.pop(stage.key, None) is not None:
            return
        del self._running[stage.key]
        slot = self._slots.pop(stage.key)
        slot.keys.remove(stage.key)
        if not slot.keys:
            self._used_cpus -= slot.demand.cpus
            self._used_gpus -= slot.demand.gpus

    def _places(self, demand: Demand) -> int:
        capacity = self._capacity()
        shares = [capacity.cpus / demand.cpus]
        shares += [capacity.gpus / demand.gpus] if demand.gpus else []
        return max(1, int(min(shares) + _SLACK))


def _children_of(missing: dict[str, Stage], committed: set[str]) -> dict[str, list[Stage]]:
    children: dict[str, list[Stage]] = {key: [] for key in missing}
    for stage in missing.values():
        if stage.parent is None or stage.parent.key in committed:
            continue
        if stage.parent.key not in children:  # it would wait for ever
            raise ValueError(f"{stage.artifact.folder}: its parent is neither done nor planned")
        children[stage.parent.key].append(stage)
    return children


def _roots(missing: dict[str, Stage]) -> Iterable[Stage]:
    return (s for s in missing.values() if s.parent is None or s.parent.key not in missing)


def _urgencies(missing: dict[str, Stage], children: dict[str, list[Stage]]) -> dict[str, _Urgency]:
    places = {key: place for place, key in enumerate(missing)}
    parents_first = list(_roots(missing))
    for stage in parents_first:  # it grows while it is read
        parents_first += children[stage.key]
    found: dict[str, _Urgency] = {}
    for stage in reversed(parents_first):
        below = [found[child.key] for child in children[stage.key]]
        height = min((negative for negative, _, _ in below), default=1) - 1
        descendants = sum(negative for _, negative, _ in below) - len(below)
        found[stage.key] = (height, descendants, places[stage.key])
    return found


def _below(stage: Stage, children: dict[str, list[Stage]]) -> list[Stage]:
    found = list(children[stage.key])
    for child in found:  # it grows while it is read
        found += children[child.key]
    return found
