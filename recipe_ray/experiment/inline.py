"""Running stages in this process without Ray: `recipe-ray debug`, tests, single commands."""

from collections.abc import Callable, Iterable

from recipe_ray.data.feed import LocalFeed
from recipe_ray.data.sources import Locations
from recipe_ray.learn.runtime import LocalRuntime, Progress
from recipe_ray.stages.attempt import ProgressNotes, failure_on_record
from recipe_ray.stages.run import StoreCheckpoints, run_stage, scratch
from recipe_ray.stages.stage import Context, Stage
from recipe_ray.stages.store import Store


def run_inline(
    stages: Iterable[Stage],
    store: Store,
    locations: Locations,
    *,
    checkpoint_every_s: float = 60.0,
    on_progress: Callable[[Stage, Progress], None] | None = None,
) -> None:
    """Run the stages in order, parents first; what the store has is skipped."""
    for stage in stages:
        if store.has(stage.artifact):
            continue
        then = _then(stage, on_progress)
        runtime = LocalRuntime(
            on_progress=ProgressNotes(store, stage, then),
            checkpoints=StoreCheckpoints(store, stage.key),
            checkpoint_every_s=checkpoint_every_s,
        )
        with failure_on_record(stage, store), scratch(store) as folder:
            run_stage(stage, Context(store, LocalFeed(locations), locations, runtime, folder))


def _then(
    stage: Stage, on_progress: Callable[[Stage, Progress], None] | None
) -> Callable[[Progress], None] | None:
    return None if on_progress is None else lambda progress: on_progress(stage, progress)
