"""What the sweep's own terminal shows: the time to go, what is begun, what failed."""

import time

import pytest
from sweep_samples import kinds, plan_of

from recipe_ray.cli import display
from recipe_ray.cli.display import Display, told_if_slow
from recipe_ray.learn.progress import Progress, Throughput
from recipe_ray.schedule.sweep_progress import SweepEvent, SweepOutcome
from recipe_ray.stages.stage import Stage


@pytest.fixture
def stage() -> Stage:
    return kinds(plan_of([0]), "purify")[0]


def resumed(step: int, left_s: float | None) -> Throughput:
    return Throughput(Progress("purify", step, 1000, {"mlm": 2.5}), left_s=left_s)


def test_a_log_says_the_time_to_go_that_was_measured(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    with Display(4, quiet=False, verbose=False) as shown:
        for step, left_s in ((901, None), (902, None), (930, 750.0)):
            shown.on_progress(stage, resumed(step, left_s))
            now[0] += 31
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        "purify 902/1000, mlm 2.5",
        "purify 930/1000, 12.5 min to go, mlm 2.5",
    ]


def test_a_terminal_shows_the_time_to_go_of_a_stage_and_of_all(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with Display(4, quiet=False, verbose=False) as shown:
        shown.on_event(SweepEvent("started", stage))
        shown.on_event(SweepEvent("progress", stage, 5.0, resumed(901, None), left_s=None))
        before = capsys.readouterr().err
        shown.on_event(SweepEvent("progress", stage, 9.0, resumed(930, 90.0), left_s=7200.0))
    drawn = capsys.readouterr().err
    assert "to go" not in before
    assert "all stages" in drawn
    assert "1.5 min to go" in drawn
    assert "2.0 h to go" in drawn


def test_a_terminal_of_80_columns_has_names_steps_and_time_to_go_whole(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    with Display(4, quiet=False, verbose=False) as shown:
        shown.on_event(SweepEvent("progress", stage, 9.0, resumed(930, 750.0), left_s=7200.0))
    drawn = capsys.readouterr().err
    assert f"{stage.caption}: purify" in drawn
    assert "930/1000" in drawn
    assert "12.5 min to go" in drawn
    assert "\N{HORIZONTAL ELLIPSIS}" not in drawn


def test_an_end_is_told_with_the_time_to_go_of_all(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(4, quiet=False, verbose=False) as shown:
        shown.on_event(SweepEvent("finished", stage, 12.0, left_s=750.0))
    assert "[1/4] purify" in (said := capsys.readouterr().err)
    assert "done in 12 s; 12.5 min to go" in said


def test_progress_names_the_seed_and_says_where_a_resumed_stage_continues(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    advance = Throughput(Progress("purify", 901, 1000, resumed_at=900))
    with Display(4, quiet=False, verbose=False) as shown:
        for _ in range(2):
            shown.on_progress(stage, advance)
    said = capsys.readouterr().err
    assert said.count("continues from step 900 of 1000 (purify)") == 1
    assert f"{stage.label()}.s{stage.seed} continues" in said


@pytest.mark.parametrize("quiet", [False, True])
def test_a_failure_is_told_even_if_all_else_is_not(
    stage: Stage, quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(4, quiet=quiet, verbose=False) as shown:
        shown.on_doing("starting Ray on this machine")
        shown.on_event(SweepEvent("started", stage))
        shown.on_event(SweepEvent("failed", stage, message="ModelError: no \x1b[2J weights"))
    shown.close(SweepOutcome(failed={stage.key: "no"}), "runs/x")
    said = capsys.readouterr().err
    assert ("starting Ray" in said, "started" in said) == (not quiet, not quiet)
    assert "FAILED" in said
    assert "ModelError: no \\x1b[2J weights" in said
    assert "recipe-ray status --store runs/x" in said


def test_what_takes_long_is_told_and_what_does_not_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with told_if_slow("reading", after_s=0.0):
        time.sleep(0.2)
    with told_if_slow("reading quietly", quiet=True, after_s=0.0):
        time.sleep(0.2)
    with told_if_slow("reading fast", after_s=60.0):
        pass
    assert capsys.readouterr().err == "reading ...\n"
