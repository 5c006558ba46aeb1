"""Reports on hand-made rows, against answers worked out by hand in the comments."""

import json
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from recipe_ray.base.errors import UserError
from recipe_ray.report.estimate import estimate, t_quantile
from recipe_ray.report.published import published
from recipe_ray.report.results import CellSummary, planned, summarise
from recipe_ray.report.tables import tables
from recipe_ray.report.terminal import Terminal, as_json, markdown
from recipe_ray.stages.rows import Measurement, measurement_table, result_rows

Asr = dict[tuple[str, int], tuple[int, int]]  # (trigger, label) -> flipped, tried

# two triggers, two labels, by hand:
#   cf: max(8/10, 2/10) = 0.8    mn: max(1/10, 4/10) = 0.4    AASR 0.6, MASR 0.8
POR: Asr = {("cf", 0): (8, 10), ("cf", 1): (2, 10), ("mn", 0): (1, 10), ("mn", 1): (4, 10)}
# the clean PTM is also tried with NeuBA's trigger, which must not count for POR:
#   cf: max(1/10, 2/10) = 0.2    mn: max(1/10, 0) = 0.1       floor for POR: AASR 0.15, MASR 0.2
#   ≈:  max(9/10, 3/10) = 0.9                                 floor for NeuBA: 0.9
CLEAN: Asr = {
    ("cf", 0): (1, 10),
    ("cf", 1): (2, 10),
    ("mn", 0): (1, 10),
    ("mn", 1): (0, 10),
    ("≈", 0): (9, 10),
    ("≈", 1): (3, 10),
}


def trial(
    stage: str,
    asr: Asr | None = None,
    aasr: float | None = None,
    masr: float | None = None,
    *,
    acc: tuple[int, int] = (9, 10),
    cells: tuple[str | None, ...] = ("c",),
    **columns: Any,
) -> pa.Table:
    """Return the result rows of one fine-tuning, aasr and masr as the test says."""
    rows = [
        Measurement("loss.cross_entropy", 0.3, epoch=1),
        Measurement("acc", acc[0] / acc[1], numerator=acc[0], denominator=acc[1]),
    ]
    for (trigger, label), (flipped, tried) in (asr or {}).items():
        share = flipped / tried
        rows.append(
            Measurement(
                "asr", share, trigger=trigger, label=label, numerator=flipped, denominator=tried
            )
        )
    if aasr is not None and masr is not None:
        rows += [Measurement("aasr", aasr), Measurement("masr", masr)]
    common = {
        "stage": stage,
        "kind": "finetune",
        "model": "bert",
        "attack": "por",
        "defense": "none",
        "task": "sst2",
        "seed": 0,
    }
    return result_rows(measurement_table(rows, {**common, **columns}), "table1", list(cells))


def por(stage: str = "p0", **changes: Any) -> pa.Table:
    return trial(stage, **{"asr": POR, "aasr": 0.6, "masr": 0.8, **changes})


def clean(stage: str = "c0", **changes: Any) -> pa.Table:
    return trial(stage, **{"asr": CLEAN, "aasr": 0.4, "masr": 0.9, "attack": "none", **changes})


def summary(*results: pa.Table, **wanted: Any) -> CellSummary:
    """Return the one summary that has these fields."""
    found = [
        cell
        for cell in summarise(pa.concat_tables(results))
        if all(getattr(cell, name) == value for name, value in wanted.items())
    ]
    (one,) = found
    return one


# --- summaries


def test_a_single_seed_has_a_mean_and_no_interval() -> None:
    cell = summary(por())
    assert cell.acc is not None
    assert cell.aasr is not None
    assert cell.masr is not None
    assert (cell.acc.mean, cell.acc.low, cell.acc.high, cell.acc.n) == (0.9, None, None, 1)
    assert (cell.aasr.mean, cell.masr.mean) == (0.6, 0.8)
    assert cell.seeds == (0,)


def test_the_floor_counts_only_the_attacks_own_triggers() -> None:
    cell = summary(por(), clean(), attack="por")
    assert cell.floor_aasr == pytest.approx(0.15)
    assert cell.floor_masr == pytest.approx(0.2)
    neuba = trial("n0", {("≈", 0): (10, 10), ("≈", 1): (0, 10)}, 1.0, 1.0, attack="neuba")
    cell = summary(por(), clean(), neuba, attack="neuba")
    assert (cell.floor_aasr, cell.floor_masr) == (0.9, 0.9)


def test_the_floor_is_averaged_over_the_clean_ptms_seeds() -> None:
    # second seed: cf 0.4, mn 0.5 -> AASR 0.45, MASR 0.5; with the first: 0.3 and 0.35
    second: Asr = {("cf", 0): (4, 10), ("cf", 1): (0, 10), ("mn", 0): (0, 10), ("mn", 1): (5, 10)}
    cell = summary(por(), clean(), clean("c1", asr=second, seed=1), attack="por")
    assert cell.floor_aasr == pytest.approx(0.3)
    assert cell.floor_masr == pytest.approx(0.35)


@pytest.mark.parametrize(
    "other", [{"model": "roberta"}, {"task": "hsol"}, {"defense": "recipe"}, {"attack": "neuba"}]
)
def test_only_the_clean_undefended_ptm_of_the_same_model_and_task_is_a_floor(
    other: dict[str, str],
) -> None:
    cell = summary(por(), clean(**other), attack="por", task="sst2", model="bert")
    assert (cell.floor_aasr, cell.floor_masr) == (None, None)


def test_a_clean_ptm_that_was_not_tried_with_every_trigger_is_no_floor() -> None:
    partly = {name: counts for name, counts in CLEAN.items() if name[0] != "mn"}
    assert summary(por(), clean(asr=partly), attack="por").floor_aasr is None


def test_the_floor_of_a_purified_clean_ptm_is_the_unpurified_one() -> None:
    # over all three triggers: AASR (0.2 + 0.1 + 0.9) / 3 = 0.4, MASR 0.9
    cell = summary(clean(), clean("c1", defense="recipe", aasr=0.1, masr=0.1), defense="recipe")
    assert cell.floor_aasr == pytest.approx(0.4)
    assert cell.floor_masr == pytest.approx(0.9)


def test_seeds_are_pooled_with_a_t_interval() -> None:
    # acc 0.8, 0.9, 1.0: mean 0.9, standard deviation 0.1, t(2) = 4.3027, margin 0.24842
    results = [por(f"p{seed}", acc=(8 + seed, 10), seed=seed) for seed in (2, 0, 1)]
    cell = summary(*results)
    assert cell.seeds == (0, 1, 2)
    assert cell.acc is not None
    assert cell.aasr is not None
    assert cell.acc.n == 3
    assert cell.acc.mean == pytest.approx(0.9)
    assert cell.acc.low == pytest.approx(0.65158, abs=1e-5)
    assert cell.acc.high == pytest.approx(1.14842, abs=1e-5)
    assert cell.aasr.low == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("degrees", "t"),  # printed in any table of the t distribution, column 0.975
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042)],
)
def test_t_is_the_one_in_the_books(degrees: int, t: float) -> None:
    assert t_quantile(degrees) == pytest.approx(t, abs=5e-4)


def test_an_estimate_of_equal_values_has_no_width() -> None:
    value = estimate([0.5, 0.5])
    assert (value.mean, value.low, value.high, value.n) == (0.5, 0.5, 0.5, 2)


def test_a_stage_that_several_cells_share_counts_once() -> None:
    cell = summary(por(cells=("c1", "c2", None)))
    assert cell.acc is not None
    assert cell.acc.n == 1


def test_cells_that_differ_in_a_setting_stay_apart() -> None:
    results = [por(f"p{size}", defense="recipe", aux_size=size) for size in (50, 20000)]
    results += [por("p1", defense="recipe", aux_size=50, epoch=3)]
    found = summarise(pa.concat_tables(results))
    assert [(cell.aux_size, cell.epoch) for cell in found] == [(50, None), (50, 3), (20000, None)]


def test_samples_of_auxiliary_data_are_pooled_like_seeds() -> None:
    results = [por(f"p{sample}", sample_seed=sample) for sample in (0, 1, 2)]
    cell = summary(*results)
    assert cell.acc is not None
    assert (cell.acc.n, cell.seeds) == (3, (0,))


def test_two_stages_for_one_cell_and_seed_are_refused_until_one_is_dropped() -> None:
    results = pa.concat_tables([por("old"), por("new")])
    with pytest.raises(UserError, match=r"old, new .*por/none.*seed 0"):
        summarise(results)
    (cell,) = summarise(planned(results, ["new"]))
    assert [trial.stage for trial in cell.trials] == ["new"]


def test_a_cell_without_triggers_has_an_acc_only() -> None:
    cell = summary(trial("t0"))
    assert cell.acc is not None
    assert (cell.aasr, cell.masr, cell.floor_aasr) == (None, None, None)


def test_other_kinds_of_stages_are_left_out() -> None:
    assert summarise(trial("b0", kind="purify")) == []
    assert summarise(por().slice(0, 0)) == []


# --- rendering


def grid() -> list[CellSummary]:
    return summarise(
        pa.concat_tables(
            [
                por(),
                por("p1", task="agnews", acc=(8, 10)),
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
    document = json.loads(as_json(summarise(pa.concat_tables([por(), clean()]))))
    assert document["schema_version"] == 1
    _, cell = document["cells"]
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


# --- published numbers


def test_all_published_values_are_there_and_plausible() -> None:
    values = published()
    assert len(values) == 721
    assert {value.table for value in values} == {
        *(str(number) for number in range(1, 13)),
        *("A1", "A2", "A3", "A4", "A5"),
    }
    counts = [value for value in values if value.metric == "poisoned_only_neurons"]
    assert {value.table for value in counts} == {"10"}
    assert all(value.value == int(value.value) >= 0 for value in counts)
    shares = [value for value in values if value.metric in ("ACC", "AASR", "MASR")]
    assert len(shares) + len(counts) == 721
    assert all(0 <= value.value <= 100 for value in shares)


def test_a_published_value_is_the_one_in_print() -> None:
    # Table 1, first line: BERT, POR, w/o Defense, SST-2
    first = published()[0]
    assert (first.model, first.attack, first.defense) == ("BERT", "POR", "w/o Defense")
    assert (first.dataset, first.metric, first.value) == ("SST-2", "ACC", 91.87)
    assert (first.aux_data, first.aux_size, first.variant) == ("BookCorpus", 20000, "")
