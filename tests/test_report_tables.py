"""Tables and JSON of hand-made rows that stand beside none of the paper's tables."""

import json

import pyarrow as pa
import pytest
from report_samples import clean, por, probe
from rich.console import Console

from recipe_ray.report.json_report import as_json
from recipe_ray.report.load import Recorded
from recipe_ray.report.paper_comparison import probes_table
from recipe_ray.report.render import Terminal, markdown
from recipe_ray.report.sections import sections
from recipe_ray.report.summary import CellSummary, summarise, summarise_probes
from recipe_ray.report.tables import tables


def grid() -> list[CellSummary]:
    return summarise(
        pa.concat_tables(
            [
                por(),
                por("p1", task="agnews", comparison="agnews", acc=(8, 10)),
                por("r0", defense="recipe", aux="bookcorpus", aux_size=50, aasr=0.25, masr=0.3),
                por("r1", defense="recipe", aux="bookcorpus", aux_size=10),
                clean(),
            ]
        )
    )


def test_a_table_has_a_row_a_ptm_and_columns_a_task() -> None:
    (table,) = tables(grid())
    assert table.title == "table1"
    names = [column.name for column in table.columns if not column.group]
    assert names == ["model", "attack", "defense", "aux_size", "seeds"]
    assert [column.group for column in table.columns[5:]] == ["agnews"] * 5 + ["sst2"] * 5
    assert table.rows == (
        ("bert", "none", "none", "-", "1", *"-----", "90.0", "40.0", "40.0", "90.0", "90.0"),
        (
            *("bert", "por", "none", "-", "1"),
            *("80.0", "60.0", "-", "80.0", "-"),
            *("90.0", "60.0", "15.0", "80.0", "20.0"),
        ),
        ("bert", "por", "recipe", "10", "1", *"-----", "90.0", "60.0", "15.0", "80.0", "20.0"),
        ("bert", "por", "recipe", "50", "1", *"-----", "90.0", "25.0", "15.0", "30.0", "20.0"),
    )


def test_several_seeds_show_half_the_interval() -> None:
    results = [por(f"p{seed}", acc=(8 + seed, 10), seed=seed) for seed in (0, 1, 2)]
    (table,) = tables(summarise(pa.concat_tables(results)))
    assert table.rows[0][3:5] == ("3", "90.0 ±24.8")


def test_markdown_has_a_line_a_row_and_escapes_bars() -> None:
    text = markdown(tables(summarise(por(task="a|b"))))
    lines = text.splitlines()
    assert lines[0] == "### table1"
    assert lines[2].startswith("| model | attack | defense | seeds | a\\|b ACC | a\\|b AASR | ")
    assert lines[3].startswith("| --- | --- | --- | --- | ---: |")
    assert lines[4] == "| bert | por | none | 1 | 90.0 | 60.0 | - | 80.0 | - |"
    assert "95 % t interval" in lines[-1]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut_off_in_a_narrow_terminal(width: int) -> None:
    console = Console(width=width, record=True, file=None, quiet=False, force_terminal=False)
    with console.capture() as captured:
        console.print(Terminal(tables(grid())))
    text = captured.get()
    assert "…" not in text
    for number in ("80.0", "60.0", "15.0", "25.0", "30.0"):
        assert number in text
    assert text.count("table1") == (1 if width == 200 else 2)


def test_a_name_that_looks_like_markup_is_shown_as_it_is() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(Terminal(tables(summarise(por(defense="[bold]x")))))
    assert "[bold]x" in captured.get()


def test_no_results_is_said() -> None:
    assert markdown([]) == "no results yet\n"
    console = Console(width=80)
    with console.capture() as captured:
        console.print(Terminal([]))
    assert captured.get() == "no results yet\n"


def test_json_has_fractions_counts_and_the_stage_behind_them() -> None:
    found = Recorded("table1", pa.concat_tables([por(), clean()]), None)
    document = json.loads(as_json(sections([found])))
    assert document["schema_version"] == 3
    _, cell = document["cells"]
    assert cell["paper"] is None
    assert cell["attack"] == "por"
    assert cell["acc"] == {"mean": 0.9, "low": None, "high": None, "n": 1}
    assert cell["floor_masr"] == pytest.approx(0.2)
    (one,) = cell["trials"]
    assert one["stage"] == "p0"
    assert one["acc"] == {"value": 0.9, "numerator": 9, "denominator": 10}
    assert one["asr"][0] == {
        "trigger": "cf",
        "label": 0,
        "value": 0.8,
        "numerator": 8,
        "denominator": 10,
    }
    assert len(one["asr"]) == 4


# --- probes


def probed() -> pa.Table:
    return pa.concat_tables(
        [
            probe("b0", 0.4, 200),
            probe("r0", 0.7, 100, defense="recipe"),
            probe("r1", 0.8, 120, defense="recipe", seed=1),
            probe("c0", 0.9, 20, attack="none"),
            # another attack's trigger: the clean PTM's overlap for POR is not this one
            probe("c1", 0.5, 500, attack="none", trigger="≈"),
        ]
    )


def test_a_clean_ptm_is_probed_beside_the_attack_whose_trigger_it_was_probed_with() -> None:
    table = probes_table("probed", None, summarise_probes(probed()))
    assert [column.name for column in table.columns] == [
        *("attack", "PTM", "defense", "seeds"),
        *("overlap", "only poisoned", "share"),
    ]
    # t(1) = 12.706: of 0.7 and 0.8 the half width is 12.706 * 0.0707 / sqrt(2) = 0.635
    assert table.rows == (
        ("none", "clean", "none", "1", "50.0", "500", "50.0"),
        ("por", "backdoored", "none", "1", "40.0", "200", "20.0"),
        ("por", "purified", "recipe", "2", "75.0 ±63.5", "110 ±127", "11.0 ±12.7"),
        ("por", "clean", "none", "1", "90.0", "20", "2.0"),
    )
    assert table.notes == ("Triggers: none: ≈ on sst2; por: cf on sst2.",)


def test_probes_are_in_the_json_and_no_fine_tuning_is_made_of_them() -> None:
    document = json.loads(as_json(sections([Recorded("probed", probed(), None)])))
    assert document["cells"] == []
    assert len(document["probes"]) == 4
    (purified,) = [one for one in document["probes"] if one["defense"] == "recipe"]
    assert purified["overlap"]["mean"] == pytest.approx(0.75)
    assert purified["poisoned_only"]["mean"] == 110
    assert purified["stages"] == ["r0", "r1"]


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40])
def test_no_name_is_broken_at_any_width(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    names = {"model": "minilm-roberta-3", "attack": "neuba-amplified-short", "defense": "recipe-x"}
    rows = pa.concat_tables([por("p0", **names), por("p1", **{**names, "attack": "por-phrases"})])
    Console(width=width).print(Terminal(tables(summarise(rows))))
    drawn = capsys.readouterr().out
    assert max(map(len, drawn.splitlines())) <= width
    for name in ("minilm-roberta-3", "neuba-amplified-short", "por-phrases", "recipe-x", "80.0"):
        assert name in drawn
