"""What a sweep would take on a described cluster: time, money, use, and the best number of nodes.

The sweep's own queue is asked which stage comes next; a clock that jumps from one stage's end to
the next takes the place of the work. Nothing is run.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count

from recipe_ray.base.errors import SpecError
from recipe_ray.experiment.plan import Plan
from recipe_ray.schedule.resources import ClusterSpec, Demand, check_fits, demand_of
from recipe_ray.schedule.stage_queue import StageQueue
from recipe_ray.stages.stage import Stage

_HOUR = 3600.0
_NEAR = 1.1  # values within a tenth count as equal when a number of nodes is recommended
_SLACK = 1e-6


@dataclass(frozen=True)
class Forecast:
    """One cluster's answer; hours are of what stages hold, money is for all nodes until the end."""

    nodes: int  # of the first kind
    makespan_s: float
    cpu_hours: float
    gpu_hours: float
    money: float
    utilisation: float  # share of the GPUs (of the CPUs if there are none) that stages hold


@dataclass(frozen=True)
class Comparison:
    """The cluster as it is described, and with 1, 2, ... nodes of its first kind."""

    described: Forecast
    by_nodes: tuple[Forecast, ...]

    @property
    def recommended(self) -> Forecast:
        """The fastest of those whose cost is within 10 % of the cheapest.

        Without prices all cost the same; then the fewest nodes within 10 % of the fastest.
        """
        if not any(found.money for found in self.by_nodes):
            fastest = min(found.makespan_s for found in self.by_nodes)
            near = (f for f in self.by_nodes if f.makespan_s <= _NEAR * fastest)
            return min(near, key=lambda found: found.nodes)
        cheapest = min(found.money for found in self.by_nodes)
        affordable = (found for found in self.by_nodes if found.money <= _NEAR * cheapest)
        return min(affordable, key=lambda found: (found.makespan_s, found.nodes))


def compare_clusters(
    plan: Plan, cluster: ClusterSpec, seconds: Mapping[str, float], done: Collection[str]
) -> Comparison:
    """Forecast the cluster as described and for each number of nodes that can hold the stages."""
    described = forecast(plan, cluster, seconds, done)
    found = []
    for number in range(1, cluster.most_nodes + 1):
        try:
            found.append(forecast(plan, cluster.with_nodes(number), seconds, done))
        except SpecError:  # a worker group needs more nodes than these
            continue
    return Comparison(described, tuple(found) or (described,))


def forecast(
    plan: Plan, cluster: ClusterSpec, seconds: Mapping[str, float], done: Collection[str]
) -> Forecast:
    """Simulate a sweep of what is not `done`; `seconds` holds each such stage's own time.

    Raises SpecError for a stage that the cluster cannot hold.
    """
    missing = [stage for key, stage in plan.stages.items() if key not in done]
    check_fits(missing, plan.launch, cluster.capacity)
    demands = {stage.key: demand_of(stage, plan.launch) for stage in missing}
    capacity = cluster.capacity
    queue = StageQueue(plan.stages, done, lambda stage: demands[stage.key], lambda: capacity)
    clock = _Clock(cluster, plan.launch.checkpoint_every_s)
    pending: list[Stage] = []
    while True:
        while (stage := queue.next()) is not None:
            pending.append(stage)
        pending = [s for s in pending if not clock.start(s, demands[s.key], seconds[s.key])]
        ended = clock.next_end()
        if ended is None:
            break
        queue.commit(ended)
    if pending:
        names = pending[0].name, pending[0].label()
        raise SpecError("{} {}: its workers do not fit on the nodes side by side".format(*names))
    return clock.summary()


class _Clock:
    """The nodes, what runs on them, and the time."""

    def __init__(self, cluster: ClusterSpec, checkpoint_every_s: float) -> None:
        self._cluster = cluster
        self._checkpoint_every_s = checkpoint_every_s
        self._free = [[cpus, gpus] for cpus, gpus, _ in cluster.machines]
        self._interruptions = [rate for _, _, rate in cluster.machines]
        self._idle: Counter[Demand] = Counter()  # processes that the next stage can have
        self._ends: list[tuple[float, int, Stage, Demand, list[_Bundle]]] = []
        self._count = count()
        self._cpu_s = self._gpu_s = 0.0
        self._now = cluster.overheads.start_s

    def start(self, stage: Stage, demand: Demand, seconds: float) -> bool:
        """Place a stage's workers and note when it ends; False if there is no room for them."""
        placed = self._place(demand)
        if placed is None:
            return False
        held_s = self._overhead_s(demand) + seconds * self._slowdown(demand, placed)
        self._cpu_s += held_s * demand.cpus
        self._gpu_s += held_s * demand.gpus
        heappush(self._ends, (self._now + held_s, next(self._count), stage, demand, placed))
        return True

    def next_end(self) -> Stage | None:
        """Go to the end of the next stage, free its room and return it; None if none runs."""
        if not self._ends:
            return None
        self._now, _, stage, demand, placed = heappop(self._ends)
        for bundle in placed:
            self._take(bundle, -1)
        self._idle[demand] += 1
        return stage

    def summary(self) -> Forecast:
        """Return the result of the simulation."""
        capacity = self._cluster.capacity
        held = self._gpu_s / capacity.gpus if capacity.gpus else self._cpu_s / capacity.cpus
        return Forecast(
            nodes=self._cluster.nodes[0].count,
            makespan_s=self._now,
            cpu_hours=self._cpu_s / _HOUR,
            gpu_hours=self._gpu_s / _HOUR,
            money=self._cluster.price_per_hour * self._now / _HOUR,
            utilisation=held / self._now if self._now else 0.0,
        )

    def _overhead_s(self, demand: Demand) -> float:
        overheads = self._cluster.overheads
        if demand.nested:
            return overheads.group_s
        if not self._idle[demand]:
            return overheads.process_s
        self._idle[demand] -= 1
        return overheads.reuse_s

    def _slowdown(self, demand: Demand, placed: "list[_Bundle]") -> float:
        # an interruption costs a new start and half of the time between two checkpoints
        overheads = self._cluster.overheads
        again_s = overheads.group_s if demand.nested else overheads.process_s
        per_hour = sum(self._interruptions[node] for node in {b.node for b in placed})
        return 1 + per_hour / _HOUR * (again_s + self._checkpoint_every_s / 2)

    def _place(self, demand: Demand) -> "list[_Bundle] | None":
        placed: list[_Bundle] = []
        for cpus, gpus in _bundles(demand):
            node = self._fullest_with(cpus, gpus)
            if node is None:
                for bundle in placed:
                    self._take(bundle, -1)
                return None
            placed.append(_Bundle(node, cpus, gpus))
            self._take(placed[-1], 1)
        return placed

    def _fullest_with(self, cpus: float, gpus: float) -> int | None:
        # like Ray: a node that is in use is filled first
        fits = [
            (free[1], free[0], node)
            for node, free in enumerate(self._free)
            if free[0] >= cpus - _SLACK and free[1] >= gpus - _SLACK
        ]
        return min(fits)[2] if fits else None

    def _take(self, bundle: "_Bundle", sign: int) -> None:
        self._free[bundle.node][0] -= sign * bundle.cpus
        self._free[bundle.node][1] -= sign * bundle.gpus


@dataclass(frozen=True)
class _Bundle:
    """The share of a node that a worker holds."""

    node: int
    cpus: float
    gpus: float


def _bundles(demand: Demand) -> Iterable[tuple[float, float]]:
    yield from [(demand.cpus_per_worker, demand.gpus_per_worker)] * demand.workers
    if demand.data_cpus:
        yield demand.data_cpus, 0.0
