"""How long what is left will take, judged from the wall times of like stages in the store."""

from dataclasses import dataclass

from recipe_ray.experiment.plan import Plan
from recipe_ray.experiment.wall_times import Likeness, WallTimes
from recipe_ray.stages.store import Store


@dataclass(frozen=True)
class TimeLeft:
    """Seconds of stage time that are left, and how many stages nothing is known about."""

    known_s: float
    unknown_stages: int


def time_left(plan: Plan, store: Store, done: set[str]) -> TimeLeft:
    """Sum the expected wall times of the stages that the store lacks, as if run one by one."""
    times = _wall_times(store)
    known_s, unknown_stages = 0.0, 0
    for key, stage in plan.stages.items():
        if key in done:
            continue
        expected_s = times.expected_s(Likeness.of(stage.columns()))
        if expected_s is None:
            unknown_stages += 1
        else:
            known_s += expected_s
    return TimeLeft(known_s, unknown_stages)


def _wall_times(store: Store) -> WallTimes:
    times = WallTimes()
    for artifact in store.committed().values():
        manifest = store.manifest(artifact)
        times.add(Likeness.of(manifest["columns"]), manifest["wall_s"])
    return times
