"""What a search file may say, what is drawn from it, and what moves its key."""

from pathlib import Path
from statistics import median
from typing import Any

import pytest
import yaml
from samples import raised_by
from shell import Shell, shell
from tiny_search import search_fields, tiny_search

from recipe_ray.base.spec import explained
from recipe_ray.distributed import asha
from recipe_ray.experiment.files import load_search
from recipe_ray.experiment.search import Score, Search, Settings, drawn_at_random

__all__ = ["shell"]  # a fixture


def complaint(folder: Path, **changes: Any) -> str:
    """Return what is said of a search file with these changes."""

    def load() -> None:
        with explained("s.yaml"):
            Search.model_validate(search_fields(folder, **changes))

    return raised_by(load)


def test_test_data_cannot_choose(tmp_path: Path) -> None:
    quick = search_fields(tmp_path)["quick"]
    quick["task"] = {**quick["task"], "evaluate_on": "test"}
    said = complaint(tmp_path, quick=quick)
    assert "s.yaml: quick: task 'file' has evaluate_on: test" in said
    assert "set evaluate_on: dev" in said


def test_the_data_that_chose_cannot_confirm(tmp_path: Path) -> None:
    task = search_fields(tmp_path)["quick"]["task"]
    assert "set evaluate_on: test" in complaint(tmp_path, confirm={"tasks": [task]})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attack": "none"}, "leaves no backdoor whose MASR could be measured"),
        ({"defense": "clip"}, "defense 'clip' has no field weight_factor, fit"),
        ({"grace": 5}, "grace = 5 is more than epochs = 4"),
        ({"space": {"weight_factor": {"low": 1, "high": 0.1}}}, "high = 0.1 is not above low = 1"),
        ({"score": {"rule": "masr-with-acc"}}, "within belongs to rule masr-with-acc"),
        ({"space": {"weight_facter": {}}}, "did you mean 'weight_factor'?"),
        ({"grid": {"weight_factors": [0.1, 1]}}, "field 'grid' was removed: the comparison with"),
        ({"grid": None}, "`python -m benchmarks.full_grid FILE --weight-factors 0.1 1 10`"),
        ({"sampling": "optuna2"}, "sampling: Input should be 'random' or 'optuna'"),
    ],
)
def test_what_does_not_fit_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in complaint(tmp_path, **changes)


def test_a_search_file_takes_components_from_its_base(tmp_path: Path) -> None:
    fields = search_fields(tmp_path)
    named = {name: fields.pop(name) for name in ("model", "attack", "defense", "auxiliary")}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"define": named}))
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump({"base": "base.yaml", **{n: n for n in named}, **fields}))
    found = load_search(file, ("trials=3",))
    assert (found.trials, found.defense.label()) == (3, "defense")


def test_draws_lie_in_their_range_evenly_in_the_logarithm(tmp_path: Path) -> None:
    space = {
        "weight_factor": {"low": 0.01, "high": 100},
        "learning_rate": {"low": 1e-5, "high": 1e-3, "log": False},
        "layers": [["ffn_in"], ["ffn_in", "query"]],
    }
    found = Search.model_validate(search_fields(tmp_path, space=space, trials=400))
    drawn = drawn_at_random(found)
    factors = [one.weight_factor for one in drawn]
    assert 0.01 <= min(factors) < 0.03
    assert 30 < max(factors) <= 100
    assert 0.5 < median(factors) < 2  # the geometric mean is 1, the arithmetic one 50
    assert all(one.learning_rate and 1e-5 <= one.learning_rate <= 1e-3 for one in drawn)
    assert {one.layers for one in drawn} == {"ffn_in", "ffn_in+query"}


def test_more_trials_go_on_with_the_same_search(tmp_path: Path) -> None:
    few, more = tiny_search(tmp_path), tiny_search(tmp_path, trials=9)
    assert drawn_at_random(more.search)[:6] == drawn_at_random(few.search)
    assert more.key == few.key
    assert tiny_search(tmp_path, grace=2).key != few.key
    assert tiny_search(tmp_path, launch={"workers": {"purify": 2}}).key == few.key


def test_a_candidate_is_the_defense_with_its_settings_and_all_epochs(tmp_path: Path) -> None:
    plan = tiny_search(tmp_path)
    settings = Settings.of({"weight_factor": 0.123456, "layers": "ffn_in+query"})
    candidate = plan.candidate(settings)
    defense: Any = candidate.purify.defense
    assert (defense.weight_factor, defense.layers) == (0.123, ("ffn_in", "query"))
    assert (defense.fit.steps, defense.fit.epochs) == (None, 4)
    assert defense.label() == "recipe-wf0.123-ffn_in+query"
    assert [look.snapshot for look in candidate.looks] == [1, 2, 3, 4]
    assert {look.parent for look in candidate.looks} == {candidate.purify}
    assert Settings.of(settings.given()) == settings


@pytest.mark.parametrize(
    ("epochs", "grace", "reduction", "rungs"),
    [(4, 1, 2, (1, 2, 4)), (8, 1, 3, (1, 3, 8)), (5, 2, 3, (2, 5)), (3, 3, 2, (3,))],
)
def test_rungs_grow_by_the_reduction_up_to_all_epochs(
    tmp_path: Path, epochs: int, grace: int, reduction: int, rungs: tuple[int, ...]
) -> None:
    changes = {"epochs": epochs, "grace": grace, "reduction": reduction}
    assert Search.model_validate(search_fields(tmp_path, **changes)).rungs == rungs


def test_the_scores_are_those_of_their_rules() -> None:
    assert Score().of(0.9, 0.3, 0.92) == pytest.approx(0.6)
    within = Score(rule="masr-with-acc", within=0.02)
    assert within.of(0.90, 0.3, 0.92) == pytest.approx(-0.3)
    # too much ACC is lost: worse than every MASR, and the worse the more
    assert within.of(0.80, 0.0, 0.92) == pytest.approx(-1.1)
    assert within.of(0.10, 0.0, 0.92) < within.of(0.80, 1.0, 0.92) < within.of(0.91, 1.0, 0.92)


def test_a_missing_optuna_is_named_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asha, "find_spec", lambda name: None)
    found = Search.model_validate(search_fields(tmp_path, sampling="optuna"))
    said = raised_by(lambda: asha.require_sampler(found))
    assert "pip install 'recipe-ray[search]'" in said


def test_the_command_shows_candidates_and_the_parts_around_them(shell: Shell) -> None:
    file = shell.folder / "s.yaml"
    file.write_text(yaml.safe_dump(search_fields(shell.folder)))
    shown = shell("search", file, "--dry-run", "--set", "trials=3").out
    assert "3 candidates, random sampling, compared after epochs 1, 2, 4; 1/2 continue" in shown
    assert shown.count("wf") == 3
    assert "before: 1 cells" in shown
    assert "confirmation, for one survivor: 6 cells" in shown
    assert not (shell.folder / "runs").exists()


def test_a_file_of_before_is_told_where_its_grid_went_by_every_command(shell: Shell) -> None:
    file = shell.folder / "s.yaml"
    fields = search_fields(shell.folder)
    file.write_text(yaml.safe_dump({**fields, "grid": {"weight_factors": [0.1, 1]}}))
    said = shell.fails("search", file, "--dry-run")
    assert "s.yaml" in said
    assert "field 'grid' was removed" in said
    assert "benchmarks.full_grid" in said
    # it is a search all the same, and no experiment with a strange grid
    assert "`recipe-ray` search takes it" in shell.fails("sweep", file)
    file.write_text(yaml.safe_dump(fields))
    assert "field 'grid' was removed" in shell.fails("search", file, "--set", "grid=null")


def test_the_command_names_file_and_field(shell: Shell) -> None:
    file = shell.folder / "s.yaml"
    file.write_text(yaml.safe_dump(search_fields(shell.folder)))
    said = shell.fails("search", file, "--set", "quick.task.evaluate_on=test")
    assert "s.yaml: quick: task 'file' has evaluate_on: test" in said
    assert "give a search file" in shell.fails("search", shell.folder / "nowhere.yaml")
