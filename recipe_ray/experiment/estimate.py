"""How long what is left will take, judged from the wall times of like stages in the store."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any

from recipe_ray.experiment.plan import Plan
from recipe_ray.stages.store import Store


@dataclass(frozen=True)
class TimeLeft:
    """Seconds of stage time that are left, and how many stages nothing is known about."""

    known_s: float
    unknown_stages: int


def time_left(plan: Plan, store: Store, done: set[str]) -> TimeLeft:
    """Sum the expected wall times of the stages that the store lacks, as if run one by one.

    A stage is expected to take the median of those with the same kind, model, attack, defense and
    task, else of those with the same kind and model.
    """
    close, rough = _wall_times(store)
    known_s, unknown_stages = 0.0, 0
    for key, stage in plan.stages.items():
        if key in done:
            continue
        times = close.get(_close(stage.columns())) or rough.get(_rough(stage.columns()))
        if times:
            known_s += median(times)
        else:
            unknown_stages += 1
    return TimeLeft(known_s, unknown_stages)


def _wall_times(store: Store) -> tuple[dict[Any, list[float]], dict[Any, list[float]]]:
    close: dict[Any, list[float]] = defaultdict(list)
    rough: dict[Any, list[float]] = defaultdict(list)
    for artifact in store.committed().values():
        manifest = store.manifest(artifact)
        columns, wall_s = manifest["columns"], manifest["wall_s"]
        close[_close(columns)].append(wall_s)
        rough[_rough(columns)].append(wall_s)
    return close, rough


def _close(columns: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(columns.get(name) for name in ("kind", "model", "attack", "defense", "task"))


def _rough(columns: dict[str, Any]) -> tuple[Any, ...]:
    return columns["kind"], columns["model"]
