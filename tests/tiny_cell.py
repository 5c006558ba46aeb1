"""One tiny cell (POR, RECIPE, a task of two classes) and what a run of it leaves in a store."""

from pathlib import Path
from typing import Any

import pytest
from samples import corpus_file, task_fields, tiny_folder

from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.experiment.spec import Experiment
from recipe_ray.stages.stage import Stage
from recipe_ray.store.store import Store

FIT = {"steps": 4, "batch_size": 6, "max_length": 16, "precision": "fp32"}
ONCE = {"wall_s", "time"}  # columns that differ between two runs


def tiny_plan(folder: Path, places: Locations | None = None, **grid: Any) -> Plan:
    """Return the plan of the cell, with another grid where asked."""
    corpus = {"name": "file", "path": str(corpus_file(folder)), "size": None}
    block = {
        "models": [{"name": "bert", "source": str(tiny_folder())}],
        "attacks": [{"name": "por", "triggers": ["cf", "mn"], "corpus": corpus, "fit": FIT}],
        "defenses": [{"name": "recipe", "fit": FIT}],
        "auxiliaries": [corpus],
        "tasks": [task_fields(folder)],
        **grid,
    }
    values = {"name": "tiny", "grid": block, "finetuning": FIT, "held_out": 0.25}
    values["pretraining"] = {"corpus": corpus, "fit": FIT}
    return make_plan(Experiment.model_validate(values), places or Locations(None, folder))


def run(plan: Plan, folder: Path, **how: Any) -> Store:
    """Run a plan's stages in a store in the folder; return the store."""
    store = Store.open(folder / "store")
    run_inline(plan.stages.values(), store, Locations(None, folder), **how)
    return store


def measured(store: Store, stage: Stage) -> list[dict[str, Any]]:
    """Return a stage's rows without what a clock says."""
    rows = store.rows(stage.artifact).to_pylist()
    return [{name: row[name] for name in row if name not in ONCE} for row in rows]


def value(store: Store, stage: Stage, metric: str) -> float:
    (found,) = [row["value"] for row in measured(store, stage) if row["metric"] == metric]
    return float(found)


def rows_of(one: Stage, folder: Path) -> list[dict[str, Any]]:
    """Run a stage that has no parent; return its rows."""
    store = Store.open(folder / "store")
    run_inline([one], store, Locations(None, folder))
    rows: list[dict[str, Any]] = store.rows(one.artifact).to_pylist()
    return rows


def by_metric(rows: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    (found,) = [row for row in rows if row["metric"] == metric]
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store]:
    """Return the tiny cell, run once."""
    folder = tmp_path_factory.mktemp("finished")
    plan = tiny_plan(folder)
    return plan, run(plan, folder)
