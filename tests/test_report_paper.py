"""Tables beside the paper's: layout, differences and the clean PTM, on hand-made rows."""

import json
from typing import Any

import pyarrow as pa
import pytest
from report_samples import POR, clean, por, probe
from rich.console import Console

from recipe_ray.report.json_report import as_json
from recipe_ray.report.load import Recorded
from recipe_ray.report.render import Terminal, markdown
from recipe_ray.report.sections import Section, sections
from recipe_ray.report.tables import Table

MODELS = {"bert": "BERT"}


def recorded(table: str, *rows: pa.Table) -> Recorded:
    """Return an experiment beside one of the paper's tables."""
    whole = pa.concat_tables(rows)
    (name,) = set(whole["experiment"].to_pylist())
    plan: dict[str, Any] = {"paper": {"table": table, "models": MODELS}}
    return Recorded(name, whole, plan)


def floors() -> Recorded:
    return Recorded("clean", clean(experiment="clean"), None)


def section(table: str, *rows: pa.Table) -> Section:
    one, *_ = sections([recorded(table, *rows), floors()])
    return one


def table_of(table: str, *rows: pa.Table) -> Table:
    (found,) = section(table, *rows).tables()
    return found


def test_the_paper_the_difference_and_the_clean_ptm_stand_below_what_was_measured() -> None:
    found = table_of("1", por(), por("r0", defense="recipe", aasr=0.25, masr=0.3))
    assert found.title == "table1: Table 1, bert, por"
    assert [(c.group, c.name) for c in found.columns] == [
        *(("", "defense"), ("", "seeds")),
        *(("SST-2", "ACC"), ("SST-2", "AASR"), ("SST-2", "MASR")),
    ]
    # printed: 91.87 / 99.43 / 100.0 undefended, 90.61 / 11.96 / 15.18 by RECIPE
    assert found.rows == (
        ("none", "1", "90.0", "60.0", "80.0"),
        ("· paper", "", "91.87", "99.43", "100.00"),
        ("· difference", "", "-1.9", "-39.4", "-20.0"),
        ("recipe", "1", "90.0", "25.0", "30.0"),
        ("· paper", "", "90.61", "11.96", "15.18"),
        ("· difference", "", "-0.6", "+13.0", "+14.8"),
        ("· clean PTM", "", "90.0", "15.0", "20.0"),
    )
    covered, named = found.notes
    assert covered.startswith("6 of the 180 values")
    assert named == "bert is compared with the paper's BERT."


def test_rows_on_other_triggers_have_a_clean_line_of_their_own() -> None:
    only_cf = {name: counts for name, counts in POR.items() if name[0] == "cf"}
    badpre = por("b0", attack="badpre", asr=only_cf, aasr=0.8, masr=0.8)
    rows = table_of("1", badpre, por()).rows
    assert [row[0] for row in rows if not row[0].startswith("· d")] == [
        *("por", "· paper", "· clean PTM"),
        *("badpre", "· paper", "· clean PTM"),
    ]
    assert [row[-1] for row in rows if row[0] == "· clean PTM"] == ["20.0", "20.0"]
    assert [row[-2] for row in rows if row[0] == "· clean PTM"] == ["15.0", "20.0"]


def test_a_row_that_the_paper_lacks_has_no_paper_line() -> None:
    rows = table_of("1", por(defense="my-own")).rows
    assert [row[0] for row in rows] == ["my-own", "· clean PTM"]


def test_columns_are_those_that_the_papers_table_has() -> None:
    rows = [por(f"r{size}", attack="badpre", defense="recipe", aux_size=size) for size in (5, 50)]
    found = table_of("4", *rows)
    assert [c.name for c in found.columns] == ["defense", "aux_size", "seeds", "ACC", "MASR"]
    assert [row[1] for row in found.rows if row[0] == "recipe"] == ["50", "5"]
    assert [row[-1] for row in found.rows if row[0] == "· paper"] == ["14.86", "22.64"]
    clean_only = table_of("2", clean("c1"))
    assert [c.name for c in clean_only.columns] == ["defense", "seeds", "ACC"]


def test_an_undefended_ptm_stands_at_epoch_0_of_figure_3() -> None:
    rows = [por(f"e{epoch}", attack="badpre", defense="recipe", epoch=epoch) for epoch in (8, 1)]
    found = table_of("F3", *rows, por(attack="badpre"))
    assert [row[1] for row in found.rows if row[0] in ("none", "recipe")] == ["0", "1", "8"]
    assert found.notes == ("The paper prints no values for its Figure 3, so none are shown.",)


def test_other_auxiliary_data_than_the_papers_are_told() -> None:
    found = table_of("1", por(defense="recipe", aux="bookcorpus", aux_size=2000))
    assert "Auxiliary data here: bookcorpus (2,000); in the paper: BookCorpus (20,000)." in (
        found.notes
    )
    same = table_of("1", por(defense="recipe", aux="bookcorpus", aux_size=20000))
    assert not any("Auxiliary" in note for note in same.notes)


def test_counts_compare_as_shares_of_all_neurons() -> None:
    # printed: 1455 of 12 x 3072 = 36864 neurons, 3.9 %; here 200 of 1000
    (row, paper, difference) = table_of("10", probe("b0", 0.4, 200)).rows
    assert row == ("por", "backdoored", "none", "1", "40.0", "200", "20.0")
    assert paper == ("· paper", "", "", "", "", "1455", "3.9")
    assert difference == ("· difference", "", "", "", "", "", "+16.1")


def test_json_has_the_published_fractions_and_the_differences() -> None:
    document = json.loads(as_json([section("1", por()), section("10", probe("b0", 0.4, 200))]))
    (cell,), (probed,) = document["cells"], document["probes"]
    assert cell["paper"]["values"]["masr"] == 1.0
    assert cell["paper"]["differences"]["masr"] == pytest.approx(-0.2)
    assert (cell["paper"]["table"], cell["paper"]["dataset"]) == ("1", "SST-2")
    assert cell["clean_acc"] == 0.9
    assert probed["paper"]["values"] == {"poisoned_only": 1455}


def test_experiments_come_in_the_papers_order_and_floors_from_those_not_shown() -> None:
    nine = recorded("9", por("n0", experiment="nine", attack="badpre", weight_factor=1.0))
    ten = recorded("10", probe("b0", 0.4, 200))
    found = sections([ten, floors(), nine])
    assert [one.experiment for one in found] == ["nine", "probed", "clean"]
    (only,) = sections([ten, floors(), nine], "nine")
    assert only.cells[0].floor_masr == pytest.approx(0.2)


@pytest.mark.parametrize("width", [72, 100, 120])
def test_three_tasks_with_intervals_lose_no_number_to_a_narrow_terminal(width: int) -> None:
    tasks = ("sst2", "hsol", "ag_news")
    rows = [
        por(f"{task}{seed}", task=task, acc=(7 + seed, 10), aasr=0.1 * seed, seed=seed)
        for task in tasks
        for seed in (0, 1, 2)
    ]
    console = Console(width=width)
    with console.capture() as captured:
        console.print(Terminal([table_of("1", *rows)]))
    text = captured.get()
    assert "…" not in text
    assert text.count("±24.8") == 6  # ACC and AASR of each task
    for printed in ("91.87", "95.63", "91.16"):
        assert printed in text
    assert max(map(len, text.splitlines())) <= width


def test_markdown_keeps_the_lines_below_a_row() -> None:
    text = markdown([table_of("1", por())])
    assert "| none | 1 | 90.0 | 60.0 | 80.0 |" in text
    assert "| · paper |  | 91.87 | 99.43 | 100.00 |" in text
    assert "3 of the 180 values" in text
