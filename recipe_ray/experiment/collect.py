"""An experiment's result rows, stages run in this process without Ray, and resume points to delete.

The process that runs a stage commits its rows with the artifact. `results/<experiment>` is a view
of them for people and programs, under the experiment's names and cells. Only the experiment's
driver writes it, when it hears of a commit. If it dies between the two, the next start of the same
command finds the artifact and writes what the view lacks.

`recipe-ray debug`, tests and single commands run stages inline. A stage has one resume point and
drops it when it commits. The resume points that stay belong to stages that were given up: an
experiment was changed, or a command was stopped and never started again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.learn.progress import Throughput
from recipe_ray.store.rows import SCHEMA_VERSION, result_rows
from recipe_ray.store.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

    from recipe_ray.data.batches import Feed
    from recipe_ray.data.sources import Locations
    from recipe_ray.experiment.plan import Plan
    from recipe_ray.stages.run import Run
    from recipe_ray.stages.stage import Stage

COLLECTORS = 16  # at a time; an object store answers each request in tens of milliseconds


def bring_up_to_date(
    store: Store,
    experiment: str,
    stage: Stage,
    cells: list[str | None],
    rows: Callable[[], pa.Table],
    **decides: object,
) -> None:
    """Write a committed stage's rows into an experiment's results, unless they are there already.

    Rows of other cells or titles, or with other values of `decides`, are out of date. `rows` is
    called if they must be written. No other function writes there.
    """
    about = {"cells": cells, "columns": stage.columns(), **decides}
    mark = fingerprint({"schema": SCHEMA_VERSION, **about})
    if store.results_mark(experiment, stage.key) == mark:
        return
    measured = rows()
    if measured.num_rows:
        whole = result_rows(measured, experiment, cells)
        store.write_results(experiment, stage.key, whole, mark)


def collect(plan: Plan, store: Store, stage: Stage) -> None:
    """Bring the rows of one committed stage in the experiment's results up to date."""
    cells = plan.cells_of(stage.key)
    bring_up_to_date(store, plan.name, stage, cells, partial(_titled, store, stage))


def collect_missing(plan: Plan, store: Store, stages: Iterable[Stage]) -> None:
    """Collect committed stages, many at a time; one that is up to date costs one read."""
    with ThreadPoolExecutor(COLLECTORS) as pool:
        list(pool.map(partial(collect, plan, store), stages))


def _titled(store: Store, stage: Stage) -> pa.Table:
    """Return a stage's rows under the experiment's own names: others may have made the artifact."""
    import pyarrow as pa

    rows = store.rows(stage.artifact)
    for name, value in stage.columns().items():
        place = rows.schema.get_field_index(name)
        field = rows.schema.field(place)
        rows = rows.set_column(place, field, pa.array([value] * rows.num_rows, field.type))
    return rows


def plan_record(plan: Plan) -> dict[str, object]:
    """Return what `status` and `report` must know of a plan: its stages and cells by name."""
    return {
        "experiment": plan.name,
        "paper": plan.paper.model_dump(mode="json") if plan.paper is not None else None,
        "cells": [
            {"id": cell.id, "title": cell.title, "stages": [stage.key for stage in cell.stages]}
            for cell in plan.cells
        ],
        "stages": {
            key: {
                "kind": stage.name,
                "label": stage.label(),
                "seed": stage.seed,
                "parent": stage.parent.key if stage.parent is not None else None,
            }
            for key, stage in plan.stages.items()
        },
    }


def run_planned(
    plan: Plan, stages: Iterable[Stage], store: Store, locations: Locations, **how: Any
) -> None:
    """Run stages of a plan inline, and leave plan and rows in the store as a sweep does.

    `how`: as for `run_inline`.
    """
    chosen = list(stages)
    store.write_plan(plan.name, plan_record(plan))
    run_inline(chosen, store, locations, experiment=plan.name, **how)
    collect_missing(plan, store, chosen)


def run_inline(
    stages: Iterable[Stage],
    store: Store,
    locations: Locations,
    *,
    experiment: str = "inline",
    checkpoint_every_s: float = 60.0,
    on_progress: Callable[[Stage, Throughput], None] | None = None,
    feed: Feed | None = None,
    run: Run | None = None,
) -> None:
    """Run the stages in order, parents first; stages that the store has are skipped.

    `experiment` names the folder of their event files and is said in their progress notes.
    `feed`: one that has read the data before; `run`: in place of the last stage's own `run`.
    """
    from recipe_ray.stages.run import failure_on_record

    stages = list(stages)
    for stage in stages:
        with failure_on_record(stage, store):
            run_one(
                stage,
                store,
                locations,
                experiment=experiment,
                checkpoint_every_s=checkpoint_every_s,
                on_progress=on_progress,
                feed=feed,
                run=run if stage is stages[-1] else None,
            )


def run_one(
    stage: Stage,
    store: Store,
    locations: Locations,
    *,
    experiment: str = "inline",
    checkpoint_every_s: float = 60.0,
    on_progress: Callable[[Stage, Throughput], None] | None = None,
    feed: Feed | None = None,
    run: Run | None = None,
) -> None:
    """Run one stage unless the store has it. The caller keeps a note of a failure.

    `feed` and `run` as for `run_inline`.
    """
    from recipe_ray.data.batches import LocalFeed
    from recipe_ray.learn.runtime import LocalRuntime
    from recipe_ray.stages.run import attempt, observed

    if store.has(stage.artifact):
        return
    with observed(
        stage,
        store,
        LocalRuntime,
        experiment=experiment,
        checkpoint_every_s=checkpoint_every_s,
        observers=(partial(on_progress, stage),) if on_progress is not None else (),
    ) as seen:
        attempt(stage, store, feed or LocalFeed(locations), locations, seen, run)


def stale_checkpoints(store: Store, running: Collection[str]) -> dict[str, int]:
    """Return the bytes of each such resume point by key, without those of `running` stages."""
    found = store.checkpoints()
    if not found:
        return {}
    plans = [plan for name in store.experiments() if (plan := store.plan(name)) is not None]
    planned = {key for plan in plans for key in plan["stages"]}
    wanted = (planned - store.committed().keys()) | set(running)
    return {key: size for key, size in found.items() if key not in wanted}


def prune_checkpoints(store: Store, running: Collection[str]) -> dict[str, int]:
    """Delete them and return what was deleted."""
    stale = stale_checkpoints(store, running)
    for key in stale:
        store.drop_checkpoint(key)
    return stale
