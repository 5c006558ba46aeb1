"""Stages that stop or fail: resumed with the same numbers, or noted with no artifact left."""

from pathlib import Path
from typing import Any

import pytest
from tiny_cell import FIT, finished, measured, run, tiny_plan

from recipe_ray.base.errors import (
    DataError,
    ModelError,
    NonFiniteLossError,
    TriggerError,
    UserError,
)
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.plan import Plan
from recipe_ray.experiment.spec import Launch
from recipe_ray.learn.progress import Throughput
from recipe_ray.stages.stage import Stage
from recipe_ray.store.store import Store

__all__ = ["finished"]  # a fixture

UNKNOWN = {"name": "none", "triggers": ["🦖"]}
WRONG_LAYERS: dict[str, Any] = {"defenses": [{"name": "recipe", "layers": ["ff"]}]}


def test_a_run_stopped_in_any_stage_ends_with_the_same_numbers(
    finished: tuple[Plan, Store], tmp_path: Path
) -> None:
    plan, store = finished
    for phase in ("poison", "purify", "fine-tune"):

        def stop(stage: Stage, advance: Throughput, phase: str = phase) -> None:
            if (advance.progress.phase, advance.progress.step) == (phase, 3):
                raise ConnectionError("gone")

        with pytest.raises(ConnectionError):
            run(tiny_plan(tmp_path), tmp_path, on_progress=stop, checkpoint_every_s=0)
    half_way = Store.open(tmp_path / "store")
    (failure,) = half_way.failures().values()
    assert (failure["error"], failure["message"]) == ("ConnectionError", "gone")
    steps: list[int] = []
    other = run(plan, tmp_path, on_progress=lambda stage, seen: steps.append(seen.progress.step))
    assert steps == [3, 4]  # from the resume point on
    assert other.failures() == {}
    for stage in plan.stages.values():
        assert measured(other, stage) == measured(store, stage)


def test_a_stage_that_diverges_leaves_a_note_and_no_artifact(tmp_path: Path) -> None:
    fit = {**FIT, "steps": 20, "learning_rate": 1e30}
    plan = tiny_plan(tmp_path, attacks=["none"], defenses=[{"name": "recipe", "fit": fit}])
    with pytest.raises(NonFiniteLossError):
        run(plan, tmp_path)
    store, stage = Store.open(tmp_path / "store"), plan.cells[0].stages[0]
    note = store.failures()[stage.key]
    assert (note["kind"], note["error"]) == ("purify", "NonFiniteLossError")
    assert "purify" in note["message"]
    assert "mlm = " in note["message"]
    assert "a smaller learning_rate" in note["message"]
    assert store.committed() == {}
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("grid", "error", "said"),
    [
        ({"attacks": [UNKNOWN], "defenses": ["none"]}, TriggerError, "🦖"),
        (WRONG_LAYERS, UserError, "'ff'"),
    ],
)
def test_what_the_user_got_wrong_is_noted_as_such(
    tmp_path: Path, grid: dict[str, Any], error: type[UserError], said: str
) -> None:
    plan = tiny_plan(tmp_path, **grid)
    with pytest.raises(error, match=said):
        run(plan, tmp_path)
    (note,) = Store.open(tmp_path / "store").failures().values()
    assert note["is_user_error"]


@pytest.mark.parametrize("how", ["inline", "in a trial"])
def test_a_failure_is_noted_once(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipe_ray.distributed.train import SweepContext
    from recipe_ray.distributed.trial import FAILURE, STAGES, StageTrial

    noted: list[str] = []
    monkeypatch.setattr(Store, "record_failure", lambda self, one, why: noted.append(why["error"]))
    plan, store = tiny_plan(tmp_path, **WRONG_LAYERS), Store.open(tmp_path / "store")
    key, stage = next((key, one) for key, one in plan.stages.items() if one.name == "purify")
    places = Locations(None, tmp_path)
    for parent in stage.lineage()[:-1]:
        run_inline([parent], store, places)
    if how == "inline":
        with pytest.raises(ModelError):
            run_inline([stage], store, places)
    else:
        trial = object.__new__(StageTrial)  # without the process that Tune makes for it
        trial.config = {STAGES: [key]}
        trial.setup(trial.config, SweepContext(plan.stages, store, places, Launch()))
        assert "'ff'" in trial.step()[FAILURE]
    assert noted == ["ModelError"]


def test_a_corpus_that_was_emptied_since_is_an_error(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, attacks=["none"])
    (tmp_path / "texts.txt").write_text("\n \n")
    with pytest.raises(DataError, match="no text in"):
        run(plan, tmp_path)
