"""How long stages will take, judged from the wall times of like stages in the store."""

from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import median
from typing import Any

from recipe_ray.base.errors import SpecError
from recipe_ray.experiment.cluster_spec import ClusterSpec
from recipe_ray.experiment.plan import Plan
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
    """Return by key the expected seconds of each stage that is not `done`, where any is known.

    A stage is expected to take the median of those with the same kind, model, attack, defense and
    task, else of those with the same kind and model.
    """
    close, rough = _wall_times(store) if store is not None else ({}, {})
    found: dict[str, float] = {}
    for key, stage in plan.stages.items() if close else ():
        if key not in done:
            columns = stage.columns()
            expected = close.get(_close(columns)) or rough.get(_rough(columns))
            found |= {key: expected} if expected is not None else {}
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


def _wall_times(store: Store) -> tuple[dict[Any, float], dict[Any, float]]:
    close: dict[Any, list[float]] = defaultdict(list)
    rough: dict[Any, list[float]] = defaultdict(list)
    with ThreadPoolExecutor(_READERS) as pool:
        manifests = list(pool.map(store.manifest, store.committed().values()))
    for manifest in manifests:
        columns, wall_s = manifest["columns"], manifest["wall_s"]
        close[_close(columns)].append(wall_s)
        rough[_rough(columns)].append(wall_s)
    return {like: median(times) for like, times in close.items()}, {
        like: median(times) for like, times in rough.items()
    }


def _close(columns: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(columns.get(name) for name in ("kind", "model", "attack", "defense", "task"))


def _rough(columns: dict[str, Any]) -> tuple[Any, ...]:
    return columns["kind"], columns["model"]
