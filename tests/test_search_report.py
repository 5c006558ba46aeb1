"""A search in a report: its curve as a table, as a figure and in JSON."""

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
from recipe_ray.experiment.search_plan import Look, Record
from recipe_ray.report.charts import FORMATS
from recipe_ray.report.figures import draw
from recipe_ray.report.json_report import as_json
from recipe_ray.report.load import Recorded
from recipe_ray.report.render import Terminal, markdown
from recipe_ray.report.sections import Section, sections
from recipe_ray.store.rows import Measurement, measurement_table, result_rows
from recipe_ray.store.store import Store


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
    (found,) = sections([Recorded("asha", pa.concat_tables(rows), plan)])
    return found


def test_the_curve_goes_by_weight_factor_and_has_a_column_a_rung() -> None:
    (curve,) = section().tables()
    assert curve.title == "asha: search, bert, por, sst2-dev"
    assert curve.rows == (
        ("recipe-wf0.1", "stopped", "20.0", "25.0", "-", "2", "90.0", "65.0"),
        ("recipe-wf1.5", "finished", "50.0", "-", "60.0", "4", "90.0", "30.0"),
        ("recipe-wf10", "stopped", "10.0", "-", "-", "1", "90.0", "80.0"),
    )


@pytest.mark.parametrize("width", [60, 100])
def test_a_search_is_drawn_in_a_terminal_and_as_markdown(width: int) -> None:
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(Terminal(section().tables()))
    for text in (captured.get(), markdown(section().tables())):
        assert "recipe-wf1.5" in text
        assert "65.0" in text


def test_a_search_is_a_part_of_the_json() -> None:
    (found,) = json.loads(as_json([section()]))["searches"]
    best = found["candidates"][1]
    assert (best["weight_factor"], best["ended"], best["looks"][-1]["score"]) == (
        1.5,
        "finished",
        0.6,
    )


def test_the_figure_has_a_line_a_rung(tmp_path: Path) -> None:
    files = draw([section()], tmp_path)
    assert [file.name for file in files] == [f"asha-search.{suffix}" for suffix in FORMATS]
    assert all(file.stat().st_size > 1000 for file in files)


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
            course.looks[epoch] = Look(epoch, score, 4.0, 1.0, acc=0.9, masr=0.9 - score)
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
