"""Summaries of hand-made rows, against answers worked out by hand in the comments."""

from typing import Any

import pyarrow as pa
import pytest
from report_samples import CLEAN, Asr, clean, por, trial

from recipe_ray.base.errors import UserError
from recipe_ray.report.load import planned
from recipe_ray.report.stats import estimate, t_quantile
from recipe_ray.report.summary import CellSummary, summarise


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
    "other", [{"comparison": "otherwise"}, {"defense": "recipe"}, {"attack": "neuba"}]
)
def test_only_the_clean_undefended_ptm_that_was_fine_tuned_alike_is_a_floor(
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


def test_a_floor_is_found_in_any_experiment_whatever_the_model_is_called_there() -> None:
    elsewhere = clean(experiment="table2", model="MiniLM", task="SST-2")
    cell = summary(por(), elsewhere, attack="por")
    assert cell.floor_aasr == pytest.approx(0.15)
    assert cell.clean_acc == 0.9


def test_a_clean_stage_that_experiments_share_counts_once() -> None:
    # ACC 0.9 twice from one stage, 0.6 from another seed: the mean of the seeds is 0.75
    shared = [clean("c0", experiment=name) for name in ("table1", "table2")]
    other = clean("c1", seed=1, acc=(6, 10))
    cell = summary(por(), *shared, other, attack="por")
    assert cell.clean_acc == pytest.approx(0.75)


def test_clean_stages_that_differ_in_the_triggers_tried_count_once_a_seed() -> None:
    fewer = {name: counts for name, counts in CLEAN.items() if name[0] != "≈"}
    again = clean("c1", experiment="table2", asr=fewer)
    other = clean("c2", seed=1, acc=(6, 10))
    assert summary(por(), clean(), again, other, attack="por").clean_acc == pytest.approx(0.75)
