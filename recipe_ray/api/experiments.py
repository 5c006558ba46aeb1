"""Experiments: planned from a file or a mapping, run on Ray or in this process, read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from recipe_ray.api.places import data_locations
from recipe_ray.api.running import Listener, Watcher
from recipe_ray.base.errors import SpecError, UserError
from recipe_ray.base.paths import existing_path, local_path, why_missing

if TYPE_CHECKING:
    from recipe_ray.data.sources import Locations
    from recipe_ray.experiment.plan import Cell, Plan
    from recipe_ray.report.load import Recorded
    from recipe_ray.schedule.sweep_progress import SweepOutcome
    from recipe_ray.stages.stage import Stage
    from recipe_ray.store.store import Store

STORE_FORMS = (
    "the folder or URI that --store was given, a folder that report --export wrote, or a Parquet "
    "file of result rows"
)


def planned(
    experiment: str | PurePath | Mapping[str, Any],
    changes: Sequence[str] = (),
    data: str | None = None,
    limit: int | None = None,
) -> Plan:
    """Return the cells and stages of an experiment; nothing is run.

    Raises SpecError for what the experiment says wrongly, DataError for data that are missing.
    """
    from recipe_ray.experiment.files import load_experiment
    from recipe_ray.experiment.plan import make_plan

    given: Path | Mapping[str, Any]
    if isinstance(experiment, Mapping):
        given = experiment
    elif isinstance(experiment, (str, PurePath)):
        given = existing_path(str(experiment), "FILE", "an experiment file (YAML)", "file")
    else:
        raise SpecError(
            f"experiment: expected a file or a mapping, not {type(experiment).__name__}"
        )
    return make_plan(load_experiment(given, tuple(changes)), data_locations(data), limit)


def swept(
    plan: Plan, store: Store, locations: Locations, address: str | None, watcher: Watcher
) -> SweepOutcome:
    """Run what the store lacks of a plan on Ray; the same call continues what was stopped."""
    from recipe_ray.distributed.sweep import sweep  # Ray is imported only if it is used

    return sweep(
        plan,
        store,
        locations,
        address=address,
        on_event=watcher.on_event,
        on_doing=watcher.on_doing,
    )


def run_cell(plan: Plan, cell: Cell, store: Store, locations: Locations, watcher: Watcher) -> None:
    """Run a cell in this process; raise what its first failing stage raised."""
    from recipe_ray.experiment.collect import run_planned

    every_s = plan.launch.checkpoint_every_s
    how = {"checkpoint_every_s": every_s, "on_progress": watcher.on_progress}
    run_planned(plan, cell.stages, store, locations, **how)


def run_here(plan: Plan, store: Store, locations: Locations, listener: Listener) -> SweepOutcome:
    """Run what the store lacks of a plan in this process, without Ray, cell after cell.

    A stage that fails costs only the cells that need it, as in a sweep.
    """
    from time import monotonic

    from recipe_ray.schedule.sweep_progress import SweepOutcome

    started, there = monotonic(), plan.stages.keys() & store.committed().keys()
    failed: dict[str, str] = {}
    outcome = SweepOutcome(skipped=tuple(key for key in plan.stages if key in there))
    with listener.watching(len(plan.stages)) as watcher:
        for cell in plan.cells:
            if any(stage.key in failed for stage in cell.stages):
                continue
            try:
                run_cell(plan, cell, store, locations, watcher)
            except UserError as error:
                failed[_unfinished(cell, store).key] = str(error)
    done = tuple(key for key in plan.stages if key not in there and key in store.committed())
    return replace(outcome, done=done, failed=failed, wall_s=monotonic() - started)


def _unfinished(cell: Cell, store: Store) -> Stage:
    return next(stage for stage in cell.stages if not store.has(stage.artifact))


def recorded_at(place: str) -> list[Recorded]:
    """Return the experiments in a store, a kept folder or a file of rows, by name.

    Raises SpecError or StoreError for a place that has none.
    """
    from recipe_ray.report.load import recorded
    from recipe_ray.store.remote import is_remote

    if is_remote(place):
        return recorded(place)
    path = local_path(place, "PATH", STORE_FORMS)
    if path.is_dir() or path.suffix.lower() == ".parquet":
        found = recorded(str(path))
        if found or not path.is_dir() or not any(path.iterdir()):
            return found
        some = ", ".join(sorted(entry.name for entry in path.iterdir())[:4])
        raise SpecError(
            f"no results of an experiment in {place} (it has {some}); give {STORE_FORMS}"
        )
    why = f"{place} is another kind of file" if path.exists() else why_missing(place)
    raise SpecError(f"no store at {place}: {why}; give {STORE_FORMS}")
