"""A search in a report: its curve, the comparison with the full grid, figure and JSON."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console
from tiny_search import tiny_search

from recipe_ray.cli.search import SearchDisplay
from recipe_ray.distributed.asha import CandidateEvent
from recipe_ray.experiment.search import Settings
from recipe_ray.experiment.search_comparison import compare
from recipe_ray.experiment.search_plan import Look, Record
from recipe_ray.report.figures import draw
from recipe_ray.report.json_report import as_json
from recipe_ray.report.load import Recorded
from recipe_ray.report.render import Terminal, markdown
from recipe_ray.report.sections import Section, sections
from recipe_ray.store.rows import Measurement, measurement_table, result_rows
from recipe_ray.store.store import Store

COMPARED = {
    **{"search_epochs": 7, "search_finetunings": 7, "search_s": 70, "all_epochs": 12},
    **{"grid_epochs": 16, "grid_finetunings": 4, "grid_s": 100, "epochs_saved": 0.5625},
    **{"seconds_saved": 0.3, "search_best_score": 0.6, "search_best_weight_factor": 1.5},
    **{"grid_best_score": 0.65, "grid_best_weight_factor": 1.0, "spread": 0.06, "same_region": 1.0},
}


def looks(factor: float, scores: dict[int, float]) -> pa.Table:
    """Return the rows of one candidate's looks: ACC 0.9, MASR what the score leaves of it."""
    tables = []
    for epoch, score in scores.items():
        values = {"acc": 0.9, "masr": 0.9 - score, "score": score}
        rows = [Measurement(name, value, epoch=epoch) for name, value in values.items()]
        common = {
            **{"stage": f"{factor:g}-{epoch}", "kind": "finetune", "model": "bert", "seed": 0},
            **{"attack": "por", "defense": f"recipe-wf{factor:g}", "weight_factor": factor},
            **{"task": "sst2-dev", "comparison": "same"},
        }
        tables.append(result_rows(measurement_table(rows, common), "asha", [None]))
    return pa.concat_tables(tables)


def comparison() -> pa.Table:
    common = {"stage": "x", "kind": "search", "model": "bert", "attack": "por", "defense": "recipe"}
    whole = [Measurement(name, value) for name, value in COMPARED.items()]
    points = [
        measurement_table([Measurement("grid_score", score)], {**common, "weight_factor": factor})
        for factor, score in ((0.1, 0.2), (1.0, 0.65))
    ]
    tables = [measurement_table(whole, common), *points]
    return result_rows(pa.concat_tables(tables), "asha", [None])


def section() -> Section:
    rows = [looks(10.0, {1: 0.1}), looks(0.1, {1: 0.2, 2: 0.25}), looks(1.5, {1: 0.5, 4: 0.6})]
    endings = {10.0: "stopped", 0.1: "stopped", 1.5: "finished"}
    plan: dict[str, Any] = {
        "search": {
            "rungs": [1, 2, 4],
            "score": {"rule": "acc-masr"},
            "trials": 3,
            "candidates": [
                {"settings": {"weight_factor": f}, "ended": e} for f, e in endings.items()
            ],
        }
    }
    (found,) = sections([Recorded("asha", pa.concat_tables([*rows, comparison()]), plan)])
    return found


def test_the_curve_goes_by_weight_factor_and_has_a_column_a_rung() -> None:
    curve, _ = section().tables()
    assert curve.title == "asha: search, bert, por, sst2-dev"
    assert curve.rows == (
        ("recipe-wf0.1", "stopped", "20.0", "25.0", "-", "2", "90.0", "65.0"),
        ("recipe-wf1.5", "finished", "50.0", "-", "60.0", "4", "90.0", "30.0"),
        ("recipe-wf10", "stopped", "10.0", "-", "-", "1", "90.0", "80.0"),
    )


def test_what_was_saved_and_whether_the_region_is_the_same_is_said() -> None:
    _, compared = section().tables()
    assert compared.rows == (
        ("search", "7", "7", "70", "1.5", "60.0"),
        ("full grid", "16", "4", "100", "1", "65.0"),
        ("saved, %", "56.2", "-", "30.0", "-", "-"),
    )
    (verdict,) = compared.notes
    assert verdict.startswith("Found the same region")
    assert "6.0 points" in verdict
    assert "12 epochs" in verdict


@pytest.mark.parametrize("width", [60, 100])
def test_a_search_is_drawn_in_a_terminal_and_as_markdown(width: int) -> None:
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(Terminal(section().tables()))
    for text in (captured.get(), markdown(section().tables())):
        assert "recipe-wf1.5" in text
        assert "56.2" in text


def test_a_search_is_a_part_of_the_json() -> None:
    (found,) = json.loads(as_json([section()]))["searches"]
    assert found["compared"] == COMPARED
    assert found["grid"][1] == {"weight_factor": 1.0, "scores": [0.65]}
    best = found["candidates"][1]
    assert (best["weight_factor"], best["ended"], best["looks"][-1]["score"]) == (
        1.5,
        "finished",
        0.6,
    )


def test_the_figure_has_a_line_a_rung_and_the_grid(tmp_path: Path) -> None:
    files = draw([section()], tmp_path)
    assert [file.name for file in files] == ["search-asha.svg", "search-asha.png"]
    assert all(file.stat().st_size > 1000 for file in files)


@pytest.mark.parametrize(
    ("found", "score", "same"),
    [
        (0.6, 0.60, True),  # within a factor of 2 of 0.3, which is as good as 1 but for the spread
        (2.0, 0.64, True),
        (2.1, 0.64, False),  # further than a factor of 2 from both
        (1.0, 0.40, False),  # at the place, but worse than chance explains
        (0.15, 0.60, True),
        (0.1, 0.60, False),
    ],
)
def test_the_region_is_the_grids_best_and_what_seeds_do_not_tell_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: float, score: float, same: bool
) -> None:
    grid = {0.1: [0.1, 0.2], 0.3: [0.55, 0.57], 1.0: [0.6, 0.7], 10.0: [0.0, 0.1]}
    monkeypatch.setattr("recipe_ray.experiment.search_comparison.grid_scores", lambda *_: grid)
    monkeypatch.setattr("recipe_ray.experiment.search_comparison._grid_seconds", lambda *_: 100.0)
    plan = tiny_search(tmp_path)
    store: Any = SimpleNamespace()
    record = Record(plan, store)
    for factor, taken in ((found, {4: score}), (50.0, {1: 0.9})):
        course = record.begin(Settings(factor))
        course.looks = {
            epoch: Look(epoch, 0.9, 0.9 - one, one, purify_s=4.0, finetune_s=1.0)
            for epoch, one in taken.items()
        }
    compared = compare(plan, record, store, 0.9)
    # the one that went on longest counts, not a better score that was stopped at the first rung
    assert compared.search_best_weight_factor == found
    assert bool(compared.same_region) == same
    assert compared.spread == pytest.approx(0.1)
    assert (compared.search_epochs, compared.grid_epochs) == (2, 8)
    assert compared.seconds_saved == pytest.approx(0.9)


def test_a_search_that_was_never_begun_has_no_record(tmp_path: Path) -> None:
    plan = tiny_search(tmp_path)
    record = Record.load(plan, Store.open(tmp_path / "store"), 0.9)
    assert not record.courses
    assert not record.is_over
    assert record.ranked() == []


def test_every_look_is_told_with_the_best_so_far(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tiny_search(tmp_path)
    store: Any = SimpleNamespace()
    course = Record(plan, store).begin(Settings(0.5))
    with SearchDisplay(plan, quiet=False, verbose=False) as display:
        display.on_candidate(CandidateEvent("started", course))
        for epoch, score in ((1, 0.6), (3, 0.5)):
            course.looks[epoch] = Look(epoch, 0.9, 0.9 - score, score, 4.0, 1.0)
            display.on_candidate(CandidateEvent("looked", course))
        course.ended = "stopped"
        display.on_candidate(CandidateEvent("ended", course))
    best = "best so far 60.0 (wf0.5)"
    assert capsys.readouterr().err.splitlines() == [
        "[0/6] wf0.5 started",
        f"[0/6] wf0.5 epoch 1 of 4, a rung: ACC 90.0, MASR 30.0, score 60.0; {best}",
        f"[0/6] wf0.5 epoch 3 of 4: ACC 90.0, MASR 40.0, score 50.0; {best}",
        "[1/6] wf0.5 stopped after 3 epochs, 10 s",
    ]
