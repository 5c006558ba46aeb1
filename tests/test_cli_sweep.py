"""What the commands ask of a sweep, and what they make of its outcome; the sweep is a stand-in."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from cli_samples import MODEL, experiment
from samples import corpus_file
from shell import Shell, shell

from recipe_ray.experiment.plan import Plan
from recipe_ray.schedule.sweep_progress import SweepOutcome

__all__ = ["shell"]  # a fixture


@dataclass
class StandIn:
    """Notes what it was asked for and returns an outcome."""

    outcome: SweepOutcome = field(default_factory=SweepOutcome)
    plans: list[Plan] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, plan: Plan, store: Any, locations: Any, **options: Any) -> SweepOutcome:
        self.plans.append(plan)
        self.options = options
        return self.outcome


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    monkeypatch.setattr("recipe_ray.distributed.sweep.sweep", found)
    return found


def test_a_sweep_gets_the_cells_and_workers_asked_for(shell: Shell, stand_in: StandIn) -> None:
    file = experiment(shell.folder)
    words = ["--workers", "2", "--limit", "1", "--address", "ray://head:1", "--quiet"]
    assert shell("sweep", file, "--store", "store", *words).code == 0
    (plan,) = stand_in.plans
    workers = plan.launch.workers
    assert workers == {"pretrain": 2, "backdoor": 2, "purify": 2}
    assert len(plan.cells) == 1
    assert stand_in.options["address"] == "ray://head:1"


def test_a_sweep_with_a_failed_stage_says_so_in_its_exit_code(
    shell: Shell, stand_in: StandIn
) -> None:
    file = experiment(shell.folder)
    stand_in.outcome = SweepOutcome(failed={"0" * 64: "ModelError: broken"})
    assert shell("sweep", file, "--store", "store", "--quiet").code == 1


def test_a_dry_run_sweeps_nothing_and_makes_no_store(shell: Shell, stand_in: StandIn) -> None:
    shown = shell("sweep", experiment(shell.folder), "--store", "store", "--dry-run")
    assert shown.code == 0
    assert "2 cells, 0 done" in shown.out
    assert stand_in.plans == []
    assert not (shell.folder / "store").exists()


def test_one_model_on_several_workers_is_a_sweep_of_its_stages(
    shell: Shell, stand_in: StandIn
) -> None:
    stand_in.outcome = SweepOutcome(failed={"0" * 64: "ModelError: broken"})
    aux = corpus_file(shell.folder)
    done = shell(
        "purify", MODEL, "--aux", aux, "--out", "o", "--workers", "2", "--accept-harm", "--quiet"
    )
    assert done.code != 0
    assert "ModelError: broken" in done.err
    (plan,) = stand_in.plans
    assert [stage.name for stage in plan.stages.values()] == ["purify"]
    assert plan.launch.workers["purify"] == 2
    assert not (shell.folder / "o").exists()
