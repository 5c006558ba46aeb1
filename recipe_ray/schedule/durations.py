"""How long stages will take, judged from the wall times of similar stages.

A Tune trial costs its driver and a process tenths of a second, whatever it does. That is nothing
compared with a training of minutes, but most of the time if a stage takes half a second. So short
stages share a trial.
"""

from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

from recipe_ray.base.errors import SpecError
from recipe_ray.experiment.plan import Plan
from recipe_ray.schedule.resources import ClusterSpec
from recipe_ray.stages.stage import Stage
from recipe_ray.store.store import Store

BATCH_S = 15.0  # work of one batch: a hundred times what a trial costs
SHORT_S = 5.0  # a longer stage gains nothing from a batch
# a batch is at most this share of what is left for each place, so that all end at about one time
_SHARE = 0.5
_WHAT = ("attack", "defense", "task")


class TrialBatching:
    """Mean seconds of the stages of each kind, model, and attack, defense or task."""

    def __init__(self) -> None:
        self._seconds: dict[Any, float] = defaultdict(float)
        self._count: dict[Any, int] = defaultdict(int)

    def note(self, stage: Stage, seconds: float) -> None:
        """Learn from a stage that ended."""
        like = _like(stage)
        self._seconds[like] += seconds
        self._count[like] += 1

    def batch_size(self, stage: Stage, ready: int, places: int) -> int:
        """Return how many stages such as this one to run in one process, itself included.

        `ready` stages wait for `places`. One if their time is not known or is long.
        """
        like = _like(stage)
        if like not in self._count:
            return 1
        mean_s = self._seconds[like] / self._count[like]
        if mean_s > SHORT_S:
            return 1
        affordable = int(BATCH_S / max(mean_s, 0.01))
        return max(1, min(affordable, int(_SHARE * ready / places)))


def _like(stage: Stage) -> tuple[Any, ...]:
    own = [getattr(stage, name, None) for name in _WHAT]
    return stage.name, stage.model.label(), *(part and part.label() for part in own)


@dataclass(frozen=True)
class Likeness:
    """What stages of about the same time have in common: closely, else roughly."""

    close: tuple[Any, ...]
    rough: tuple[Any, ...]

    @classmethod
    def of(cls, columns: dict[str, Any]) -> "Likeness":
        """Return that of a stage with these result columns."""
        close = ("kind", "model", "attack", "defense", "task")
        return cls(tuple(map(columns.get, close)), (columns["kind"], columns["model"]))


class WallTimes:
    """Wall times of finished stages by similarity."""

    def __init__(self) -> None:
        self._times: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self._medians: dict[tuple[Any, ...], float] = {}  # until another is added

    def add(self, likeness: Likeness, wall_s: float) -> None:
        """Learn of a finished stage."""
        for like in (likeness.close, likeness.rough):
            self._times[like].append(wall_s)
            self._medians.pop(like, None)

    def expected_s(self, likeness: Likeness) -> float | None:
        """Return the median of closely similar stages, else of roughly similar ones, or None."""
        like = likeness.close if likeness.close in self._times else likeness.rough
        if like not in self._times:
            return None
        if like not in self._medians:
            self._medians[like] = median(self._times[like])
        return self._medians[like]


_READERS = 16  # manifests at a time; an object store answers each in tens of milliseconds


@dataclass(frozen=True)
class TimeLeft:
    """Seconds of stage time that are left, and the number of stages of unknown time."""

    known_s: float
    unknown_stages: int


def time_left(plan: Plan, store: Store, done: Collection[str]) -> TimeLeft:
    """Sum the expected wall times of the stages that the store lacks, as if run one by one."""
    measured = measured_seconds(plan, store, done)
    unknown_stages = len(plan.stages) - len(set(done) & plan.stages.keys()) - len(measured)
    return TimeLeft(sum(measured.values()), unknown_stages)


def measured_seconds(plan: Plan, store: Store | None, done: Collection[str]) -> dict[str, float]:
    """Return by key the expected seconds of each stage that is not `done`, if known."""
    if store is None:
        return {}
    times, found = _wall_times(store), dict[str, float]()
    for key, stage in plan.stages.items():
        expected_s = times.expected_s(Likeness.of(stage.columns())) if key not in done else None
        if expected_s is not None:
            found[key] = expected_s
    return found


def stage_seconds(
    plan: Plan, cluster: ClusterSpec, store: Store | None, done: Collection[str]
) -> dict[str, float]:
    """Return the seconds of each stage on a cluster: as given there, else as measured and scaled.

    Raises SpecError naming every kind and model of which neither is known.
    """
    measured = measured_seconds(plan, store, done)
    found: dict[str, float] = {}
    unknown: dict[tuple[str, str], int] = defaultdict(int)
    for key, stage in plan.stages.items():
        if key in done:
            continue
        given = cluster.given_seconds(stage.name, stage.model.label())
        if given is not None:
            found[key] = given
        elif key in measured:
            found[key] = measured[key] * cluster.measured_factor
        else:
            unknown[stage.name, stage.model.label()] += 1
    if unknown:
        raise SpecError("\n".join(_missing(*what, number) for what, number in unknown.items()))
    return found


def _missing(kind: str, model: str, number: int) -> str:
    return (
        f"the duration of {kind} of {model} is unknown ({number} stages): give `stage_seconds: "
        f"{{{kind}: {{{model}: SECONDS}}}}` in the cluster file, or a --store that holds such a "
        "stage"
    )


def _wall_times(store: Store) -> WallTimes:
    times = WallTimes()
    with ThreadPoolExecutor(_READERS) as pool:
        manifests = list(pool.map(store.manifest, store.committed().values()))
    for manifest in manifests:
        times.add(Likeness.of(manifest["columns"]), manifest["wall_s"])
    return times
