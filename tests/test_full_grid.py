"""The benchmark that holds a search beside the full grid: its grid, its rule, what it prints."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from tiny_search import search_fields, tiny_search

from benchmarks.full_grid import as_figures, compare, grid_plan, main
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.search import Settings
from recipe_ray.experiment.search_plan import Look, Record


def test_the_grid_is_purified_for_all_epochs_and_fine_tuned_as_a_look_is(tmp_path: Path) -> None:
    plan = tiny_search(tmp_path)
    grid = grid_plan(plan, [0.1, 1.0], [0, 1], Locations(None, tmp_path))
    assert grid.name == "tiny.grid"
    assert len(grid.cells) == 4
    look = plan.candidate(Settings(0.1)).looks[-1]
    first = grid.cells[0].last
    assert first.columns()["weight_factor"] == 0.1
    assert first.identity()["fit"] == look.identity()["fit"]
    assert first.parent is not None
    assert look.parent is not None
    # all its epochs, as a candidate that is never stopped
    assert first.parent.identity()["defense"] == look.parent.identity()["defense"]


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
    tmp_path: Path, found: float, score: float, same: bool
) -> None:
    grid = {0.1: [0.1, 0.2], 0.3: [0.55, 0.57], 1.0: [0.6, 0.7], 10.0: [0.0, 0.1]}
    plan = tiny_search(tmp_path)
    store: Any = SimpleNamespace()
    record = Record(plan, store)
    for factor, taken in ((found, {4: score}), (50.0, {1: 0.9})):
        course = record.begin(Settings(factor))
        course.looks = {
            epoch: Look(epoch, one, purify_s=4.0, look_s=1.0, acc=0.9, masr=0.9 - one)
            for epoch, one in taken.items()
        }
    compared = compare(plan, record, grid, 100.0)
    # the one that went on longest counts, not a better score that was stopped at the first rung
    assert compared.search_best_weight_factor == found
    assert bool(compared.same_region) == same
    assert compared.spread == pytest.approx(0.1)
    assert (compared.search_epochs, compared.grid_epochs) == (2, 16)
    assert compared.seconds_saved == pytest.approx(0.9)


def test_every_value_is_printed_with_its_unit(tmp_path: Path) -> None:
    plan = tiny_search(tmp_path)
    store: Any = SimpleNamespace()
    record = Record(plan, store)
    record.begin(Settings(0.5)).looks = {4: Look(4, 0.6, 4.0, 1.0, acc=0.9, masr=0.3)}
    lines = [str(one) for one in as_figures(compare(plan, record, {0.1: [0.5], 1: [0.6]}, 20.0))]
    assert "full_grid_epochs_saved: 0.875 (0.875-0.875) of the grid's" in lines
    assert "full_grid_search_s: 5 (5-5) s" in lines
    assert "full_grid_grid_finetunings: 2 (2-2) fine-tunings" in lines
    assert any(line.startswith("full_grid_same_region: 1") for line in lines)


def test_a_file_with_the_field_of_before_is_told_of_this_benchmark(tmp_path: Path) -> None:
    old = {**search_fields(tmp_path), "grid": {"weight_factors": [0.1, 1.0]}}
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(old))
    with pytest.raises(SystemExit, match=r"benchmarks\.full_grid FILE --weight-factors"):
        main([str(file), "--weight-factors", "0.1", "1"])
