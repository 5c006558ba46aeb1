"""Running stages in this process without Ray: `recipe-ray debug`, tests, single commands."""

from collections.abc import Callable, Iterable
from functools import partial

from recipe_ray.data.feed import LocalFeed
from recipe_ray.data.sources import Locations
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.stages.advance import Advance
from recipe_ray.stages.attempt import attempt, failure_on_record, observed
from recipe_ray.stages.stage import Stage
from recipe_ray.stages.store import Store


def run_inline(
    stages: Iterable[Stage],
    store: Store,
    locations: Locations,
    *,
    experiment: str = "inline",
    checkpoint_every_s: float = 60.0,
    on_progress: Callable[[Stage, Advance], None] | None = None,
) -> None:
    """Run the stages in order, parents first; what the store has is skipped.

    `experiment` names the folder of their event files and is said in their progress notes.
    """
    for stage in stages:
        if store.has(stage.artifact):
            continue
        with (
            failure_on_record(stage, store),
            observed(
                stage,
                store,
                LocalRuntime,
                experiment=experiment,
                checkpoint_every_s=checkpoint_every_s,
                observers=(partial(on_progress, stage),) if on_progress is not None else (),
            ) as seen,
        ):
            attempt(stage, store, LocalFeed(locations), locations, seen)
