"""The experiment files that come along, and what they share: every one plans, and as said."""

from collections import Counter
from pathlib import Path

import pytest
import yaml

from recipe_ray.base.errors import SpecError
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.plan import Plan, make_plan

FOLDER = Path(__file__).parents[1] / "experiments"
BASE = "base.yaml"
FILES = sorted(path for path in FOLDER.rglob("*.yaml") if path.name != BASE)
TABLES = [f"table{number}" for number in range(1, 12)] + ["figure2", "figure3"]
NOWHERE = Locations(None, Path("/nowhere"))


def planned(path: Path) -> Plan:
    return make_plan(load_experiment(path), NOWHERE)


def kinds(plan: Plan) -> Counter[str]:
    return Counter(stage.name for stage in plan.stages.values())


@pytest.mark.parametrize("path", FILES, ids=[f"{p.parent.name}-{p.stem}" for p in FILES])
def test_an_experiment_plans_without_data_or_network(path: Path) -> None:
    plan = planned(path)
    assert plan.cells
    header = path.read_text().split("\n\n")[0]
    missing = [word for word in ("Question:", "Command:", "Cost:") if word not in header]
    assert not missing, f"{path}: its header lacks {missing}"


@pytest.mark.parametrize("scale", ["paper", "mini"])
@pytest.mark.parametrize("name", TABLES)
def test_every_table_and_figure_of_the_text_study_has_its_file(scale: str, name: str) -> None:
    plan = planned(FOLDER / scale / f"{name}.yaml")
    assert plan.paper is not None
    assert plan.paper.table == name.replace("table", "").replace("figure", "F")
    labels = {stage.model.label() for stage in plan.stages.values()}
    assert labels == set(plan.paper.models)


def test_table_1_shares_its_backdoors_and_purifications() -> None:
    plan = planned(FOLDER / "paper" / "table1.yaml")
    assert len(plan.cells) == 60
    assert kinds(plan) == {"backdoor": 4, "purify": 16, "finetune": 60}


def test_the_seeds_of_the_mini_table_1_share_what_no_seed_changes() -> None:
    plan = planned(FOLDER / "mini" / "table1.yaml")
    # three fine-prunings draw nothing and are done once for all seeds; RECIPE once a seed
    assert kinds(plan) == {
        "pretrain": 2,
        "backdoor": 4,
        "purify": 4 * (3 + 3),
        "finetune": 180,
    }


def test_table_4_draws_other_texts_for_every_seed() -> None:
    plan = planned(FOLDER / "mini" / "table4.yaml")
    drawn = {
        (stage.columns()["aux_size"], stage.columns()["sample_seed"])
        for stage in plan.stages.values()
        if stage.name == "purify"
    }
    assert drawn == {(size, seed) for size in (500, 50, 10, 5) for seed in (0, 1, 2)}


def test_figure_3_takes_its_epochs_from_one_purification() -> None:
    plan = planned(FOLDER / "mini" / "figure3.yaml")
    assert kinds(plan)["purify"] == 1
    epochs = Counter(cell.last.columns()["epoch"] for cell in plan.cells)
    assert epochs == dict.fromkeys([None, 1, 2, 3, 4, 8], 2)


def write(folder: Path, name: str, values: dict[str, object]) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return path


GRID = {"models": ["small"], "tasks": ["sst2"]}
SMALL = {"name": "minilm", "layers": 2}


def test_a_defined_name_stands_for_its_component_and_is_its_title(tmp_path: Path) -> None:
    define = {"small": SMALL, "gentle": {"name": "recipe", "weight_factor": 0.1}}
    grid = {**GRID, "defenses": ["gentle"], "auxiliaries": ["editorials"]}
    path = write(tmp_path, "e.yaml", {"name": "e", "define": define, "grid": grid})
    [block] = load_experiment(path).grid
    [defense] = block.defenses
    assert defense.label() == "gentle"
    assert defense.weight_factor_column == 0.1
    [model] = block.models
    assert model.content()["layers"] == 2


def test_a_file_takes_over_its_base_and_its_own_settings_win(tmp_path: Path) -> None:
    base = {"define": {"small": SMALL}, "finetuning": {"epochs": 2, "batch_size": 8}}
    write(tmp_path, "common.yaml", base)
    own = {"base": "common.yaml", "name": "e", "grid": GRID, "finetuning": {"epochs": 1}}
    experiment = load_experiment(write(tmp_path, "e.yaml", own))
    assert (experiment.finetuning.epochs, experiment.finetuning.batch_size) == (1, 8)
    changed = load_experiment(tmp_path / "e.yaml", ("define.small.layers=1",))
    assert changed.grid[0].models[0].content()["layers"] == 1


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"base": "nowhere.yaml"}, "nowhere.yaml: no such experiment file"),
        ({"base": 3}, "base: expected a file beside this one, got 3"),
        ({"define": ["small"]}, "define: expected names with a mapping each"),
        ({"grid": {**GRID, "defenses": ["recipee"]}}, "did you mean 'recipe'"),
        ({"grid": {"models": ["minilm"]}}, "at least one task or one probe"),
        (
            {"grid": {**GRID, "models": ["minilm"], "defenses": ["recipe"], "snapshots": [9]}},
            "epoch 9 is asked for, but defense 'recipe' trains 4",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, values: dict[str, object], complaint: str
) -> None:
    whole = {"name": "e", "grid": GRID, "define": {"small": SMALL}, **values}
    with pytest.raises(SpecError, match=complaint):
        load_experiment(write(tmp_path, "e.yaml", whole))


def test_a_merged_mapping_gives_way_to_the_keys_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text(
        "name: e\n"
        "define:\n"
        "  wide: &wide {name: recipe, title: recipe, weight_factor: 2.0}\n"
        "  half: {<<: *wide, weight_factor: 0.5}\n"
        "grid: {models: [minilm], defenses: [wide, half], tasks: [sst2]}\n"
    )
    [block] = load_experiment(path).grid
    factors = [defense.weight_factor_column for defense in block.defenses]
    assert factors == [2.0, 0.5]
    assert [defense.label() for defense in block.defenses] == ["recipe", "recipe"]


def test_a_base_that_needs_a_base_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", {"base": "b.yaml"})
    path = write(tmp_path, "e.yaml", {"base": "a.yaml", "name": "e", "grid": GRID})
    with pytest.raises(SpecError, match="a base has no base of its own"):
        load_experiment(path)
