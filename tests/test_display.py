"""What the sweep's own terminal shows of the time to go."""

import pytest
from sweep_samples import kinds, plan_of

from recipe_ray.cli import display
from recipe_ray.cli.display import Display
from recipe_ray.learn.progress import Progress, Throughput
from recipe_ray.schedule.sweep_progress import SweepEvent
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


def test_an_end_is_told_with_the_time_to_go_of_all(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(4, quiet=False, verbose=False) as shown:
        shown.on_event(SweepEvent("finished", stage, 12.0, left_s=750.0))
    assert "[1/4] purify" in (said := capsys.readouterr().err)
    assert "done in 12 s; 12.5 min to go" in said
