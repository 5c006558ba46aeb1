"""How long stages will take, judged from the wall times of like stages in the store."""

from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from recipe_ray.base.errors import SpecError
from recipe_ray.experiment.cluster_spec import ClusterSpec
from recipe_ray.experiment.plan import Plan
from recipe_ray.experiment.wall_times import Likeness, WallTimes
from recipe_ray.stages.store import Store

_READERS = 16  # manifests at a time; an object store answers each in tens of milliseconds


@dataclass(frozen=True)
class TimeLeft:
    """Seconds of stage time that are left, and how many stages nothing is known about."""

    known_s: float
    unknown_stages: int


def time_left(plan: Plan, store: Store, done: Collection[str]) -> TimeLeft:
    """Sum the expected wall times of the stages that the store lacks, as if run one by one."""
    measured = measured_seconds(plan, store, done)
    unknown_stages = len(plan.stages) - len(set(done) & plan.stages.keys()) - len(measured)
    return TimeLeft(sum(measured.values()), unknown_stages)


def measured_seconds(plan: Plan, store: Store | None, done: Collection[str]) -> dict[str, float]:
    """Return by key the expected seconds of each stage that is not `done`, where any is known."""
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
        f"nothing is known of how long {kind} of {model} takes ({number} stages): give "
        f"`stage_seconds: {{{kind}: {{{model}: SECONDS}}}}` in the cluster file, or a --store that "
        "holds such a stage"
    )


def _wall_times(store: Store) -> WallTimes:
    times = WallTimes()
    with ThreadPoolExecutor(_READERS) as pool:
        manifests = list(pool.map(store.manifest, store.committed().values()))
    for manifest in manifests:
        times.add(Likeness.of(manifest["columns"]), manifest["wall_s"])
    return times
