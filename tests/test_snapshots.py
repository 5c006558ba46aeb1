"""Snapshots of one purification: the PTM after some epochs, and what is fine-tuned from it."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_cell import FIT, run, tiny_plan

from recipe_ray.experiment.plan import Plan
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Stage, snapshot_folder
from recipe_ray.store.store import Store

EPOCHS = {**FIT, "steps": None, "epochs": 3}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Store]:
    folder = tmp_path_factory.mktemp("snapshots")
    defenses = ["none", {"name": "recipe", "fit": EPOCHS}]
    plan = tiny_plan(folder, defenses=defenses, snapshots=[1, 3])
    return plan, run(plan, folder)


def purification(plan: Plan) -> Stage:
    [stage] = [stage for stage in plan.stages.values() if isinstance(stage, PurifyStage)]
    return stage


def weights(store: Store, stage: Stage, folder: str) -> dict[str, Any]:
    found: dict[str, Any] = load_file(store.fetch(stage.artifact) / folder / "model.safetensors")
    return found


def test_a_snapshot_is_the_ptm_after_its_epoch(taken: tuple[Plan, Store]) -> None:
    plan, store = taken
    stage = purification(plan)
    first, last, whole = (
        weights(store, stage, folder)
        for folder in (snapshot_folder(1), snapshot_folder(3), "model")
    )
    assert all(last[name].equal(whole[name]) for name in whole)
    moved = [name for name in whole if not first[name].equal(whole[name])]
    assert moved, "epochs 2 and 3 change weights"
    assert all("intermediate" in name for name in moved)


def test_every_snapshot_is_fine_tuned_from_and_says_its_epoch(taken: tuple[Plan, Store]) -> None:
    plan, store = taken
    found = {}
    for cell in plan.cells:
        rows = store.rows(cell.last.artifact).to_pylist()
        [acc] = [row for row in rows if row["metric"] == "acc"]
        found[acc["defense"], acc["epoch"]] = acc["stage"]
    assert sorted(found, key=str) == [("none", None), ("recipe", 1), ("recipe", 3)]
    assert len(set(found.values())) == 3


def test_only_what_was_done_to_the_ptm_tells_comparable_finetunings_apart(
    taken: tuple[Plan, Store], tmp_path: Path
) -> None:
    plan, _ = taken
    same = {cell.last.columns()["comparison"] for cell in plan.cells}
    assert len(same) == 1
    other = tiny_plan(tmp_path, models=[{"name": "minilm", "layers": 1}])
    assert {cell.last.columns()["comparison"] for cell in other.cells}.isdisjoint(same)
