"""The experiment files that come along, and what they share: every one plans, and as said."""

import tempfile
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from shell import Shell, shell

from recipe_ray.base.errors import SpecError
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.unlearn import Unlearn
from recipe_ray.experiment.files import load_experiment, load_search
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.experiment.search_plan import make_search_plan
from recipe_ray.report.published import PublishedTable
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.purify import PurifyStage

__all__ = ["shell"]  # a fixture

FOLDER = Path(__file__).parents[1] / "experiments"
BASES = ("base.yaml", "vision.yaml")
SEARCHES = sorted(FOLDER.rglob("asha_*.yaml"))
FILES = sorted(
    path for path in FOLDER.rglob("*.yaml") if path.name not in BASES and path not in SEARCHES
)
TABLES = [f"table{number}" for number in range(1, 13)] + ["figure2", "figure3"]
APPENDIX = [f"a{number}" for number in range(1, 6)]
# what is on no hub, so that a data folder must have it; to plan, only its checksum is needed
LOCAL = [
    f"{task}_{split}"
    for task in ("waste", "catdog", "gtsrb", "sst5", "subj")
    for split in ("train", "test")
]


@cache
def data_folder() -> Path:
    _KEPT.append(tempfile.TemporaryDirectory())
    folder = Path(_KEPT[-1].name)
    for name in (*LOCAL, "tinyimagenet32"):
        (folder / f"{name}.parquet").write_text(f"in place of {name}")
    return folder


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def planned(path: Path) -> Plan:
    # asked for without importing them, which takes long and is not needed for a plan
    installed = find_spec("torchvision") and find_spec("open_clip")
    if "vision.yaml" in path.read_text() and not installed:
        pytest.skip("needs the extra `vision`")
    return make_plan(load_experiment(path), Locations(data_folder(), Path("/nowhere")))


def kinds(plan: Plan) -> Counter[str]:
    return Counter(stage.name for stage in plan.stages.values())


@pytest.mark.parametrize("path", FILES, ids=[f"{p.parent.name}-{p.stem}" for p in FILES])
def test_an_experiment_plans_without_network(path: Path) -> None:
    plan = planned(path)
    assert plan.cells
    header = path.read_text().split("\n\n")[0]
    missing = [word for word in ("Question:", "Command:", "Cost:") if word not in header]
    assert not missing, f"{path}: its header lacks {missing}"


@pytest.mark.parametrize("path", SEARCHES, ids=[f"{p.parent.name}-{p.stem}" for p in SEARCHES])
def test_a_search_plans_without_network(path: Path, shell: Shell) -> None:
    plan = make_search_plan(load_search(path), Locations(data_folder(), Path("/nowhere")))
    assert len(plan.template.looks) == plan.search.epochs
    assert {task.evaluate_on for task in plan.search.confirm.tasks} == {"test"}
    header = path.read_text().split("\n\n")[0]
    assert all(word in header for word in ("Question:", "Command:", "Cost:", "Expect:"))
    shown = shell("search", path, "--dry-run", "--data", data_folder()).out
    assert f"{plan.search.trials} candidates" in shown


@pytest.mark.parametrize("scale", ["paper", "mini"])
@pytest.mark.parametrize("name", [*TABLES, *APPENDIX])
def test_every_table_and_figure_of_the_paper_has_its_file(scale: str, name: str) -> None:
    plan = planned(FOLDER / scale / f"{name}.yaml")
    assert plan.paper is not None
    assert plan.paper.table == name.replace("table", "").replace("figure", "F").upper()
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


def cells_beside(plan: Plan) -> list[dict[str, Any]]:
    """Return the planned cells' columns, under the names the report looks them up by."""
    return [{"epoch": None, **cell.last.columns()} for cell in plan.cells]


NAMES = ("model", "attack", "defense", "aux", "aux_size", "weight_factor", "task")


def as_row(cell: tuple[Any, ...]) -> Any:
    """Return the values of `NAMES` as the report looks them up."""
    return SimpleNamespace(**dict(zip(NAMES, cell, strict=True)))


@pytest.mark.parametrize("scale", ["paper", "mini"])
@pytest.mark.parametrize("name", ["table12", *APPENDIX])
def test_every_published_value_on_images_stands_beside_one_cell_whatever_its_seeds(
    scale: str, name: str
) -> None:
    plan = planned(FOLDER / scale / f"{name}.yaml")
    assert plan.paper is not None
    paper = PublishedTable(plan.paper)
    cells = {tuple(columns.get(name) for name in NAMES) for columns in cells_beside(plan)}
    found = Counter(
        (value.model, value.attack, value.defense, value.dataset, value.metric)
        for cell in cells
        for value in paper.find(as_row(cell)).values()
    )
    wanted = {(v.model, v.attack, v.defense, v.dataset, v.metric) for v in paper.values}
    assert set(found) == wanted
    assert set(found.values()) == {1}
    assert len(cells) == len(wanted) // len(paper.metrics)


def test_the_mini_table_12_has_three_seeds_undefended_and_with_recipe() -> None:
    columns = cells_beside(planned(FOLDER / "mini" / "table12.yaml"))
    seeds = {
        defense: {row["seed"] for row in columns if row["defense"] == defense}
        for defense in ("none", "recipe", "fp")
    }
    assert seeds == {"none": {0, 1, 2}, "recipe": {0, 1, 2}, "fp": {0}}


def test_table_12_shares_its_backdoors_and_purifications() -> None:
    plan = planned(FOLDER / "paper" / "table12.yaml")
    # the blocks of ViT and CLIP fine-tune differently, but from the same purified PTMs
    assert kinds(plan) == {"backdoor": 3, "purify": 12, "finetune": 60}
    assert kinds(planned(FOLDER / "mini" / "table12.yaml"))["pretrain"] == 3


def test_each_family_of_the_paper_is_fine_tuned_in_its_own_way() -> None:
    plan = planned(FOLDER / "paper" / "table12.yaml")
    used = {}
    for cell in plan.cells:
        assert isinstance(cell.last, FinetuneStage)
        fit = cell.last.fit
        key = (cell.last.model.label(), cell.last.task.label())
        used[key] = (fit.optimizer, fit.epochs, fit.learning_rate, fit.batch_size)
    assert {used["vgg16", task] for task in ("waste", "catdog", "gtsrb", "cifar10")} == {
        ("sgd", 10, 0.001, 64)
    }
    assert used["vit-b16", "gtsrb"] == ("sgd", 10, 0.001, 64)
    assert used["vit-b16", "cifar10"] == ("sgd", 4, 0.01, 64)
    assert used["clip-b32", "waste"] == ("adamw", 3, 1e-5, 64)
    assert used["clip-b32", "gtsrb"] == ("adamw", 3, 2e-5, 64)


def test_the_shares_of_vgg_16_come_to_the_papers_counts_of_channels() -> None:
    plan = planned(FOLDER / "paper" / "table12.yaml")
    shares = {
        stage.defense.label(): stage.defense.fields()["share"]
        for stage in plan.stages.values()
        if isinstance(stage, PurifyStage)
        and stage.model.label() == "vgg16"
        and "share" in stage.defense.fields()
    }
    counts = {"fp": 512, "fp-gm": 4224, "fp-ga": 4224}  # channels of the last, of all convolutions
    pruned = {name: round(shares[name] * counts[name]) for name in counts}
    assert pruned == {"fp": 511, "fp-gm": 512, "fp-ga": 600}


def test_a_block_names_only_what_differs_from_the_experiment(tmp_path: Path) -> None:
    whole = {
        "name": "e",
        "finetuning": {"epochs": 2, "batch_size": 8},
        "pretraining": {"trainable": "all", "fit": {"epochs": 7, "batch_size": 5}},
        "grid": [
            {"models": ["minilm"], "tasks": ["sst2"]},
            {
                "models": ["minilm"],
                "tasks": ["hsol"],
                "finetuning": {"learning_rate": 0.5},
                "pretraining": {"corpus": "wikitext", "fit": {"epochs": 3}},
            },
        ],
    }
    experiment = load_experiment(write(tmp_path, "e.yaml", whole))
    plain, other = experiment.grid
    assert plain.finetuning is None  # the experiment's
    fit = other.finetuning
    assert (fit.epochs, fit.batch_size, fit.learning_rate, fit.max_length) == (2, 8, 0.5, 128)
    how = other.pretraining
    assert (how.corpus.name, how.trainable) == ("wikitext", "all")
    assert (how.fit.epochs, how.fit.batch_size, how.fit.learning_rate) == (3, 5, 5e-4)
    assert plain.pretraining is None
    assert experiment.pretraining.corpus.name == "bookcorpus"


def test_what_does_not_fit_a_model_is_an_error_for_people(tmp_path: Path) -> None:
    grid = {"models": ["minilm"], "tasks": ["cifar10"]}
    experiment = load_experiment(write(tmp_path, "e.yaml", {"name": "e", "grid": grid}))
    with pytest.raises(SpecError, match=r"experiment e: .*reads texts; task 'cifar10' holds image"):
        make_plan(experiment, Locations(None, tmp_path))


def write(folder: Path, name: str, values: dict[str, object]) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(values))
    return path


GRID = {"models": ["small"], "tasks": ["sst2"]}
SMALL = {"name": "minilm", "layers": 2}


def test_a_defined_name_may_stand_inside_a_component(tmp_path: Path) -> None:
    define = {
        "small": SMALL,
        "gentle": {"name": "recipe", "weight_factor": 0.1},
        "look": {"name": "vocabulary", "confirmed": 7},
        "both": {"name": "unlearn", "plus": "gentle", "detectors": ["look"]},
    }
    grid = {**GRID, "defenses": ["both"], "auxiliaries": ["editorials"]}
    path = write(tmp_path, "e.yaml", {"name": "e", "define": define, "grid": grid})
    [defense] = load_experiment(path).grid[0].defenses
    assert isinstance(defense, Unlearn)
    assert defense.plus.weight_factor_column == 0.1
    assert [one.label() for one in defense.detectors] == ["look"]


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


def test_a_change_to_one_alias_leaves_the_others_alone() -> None:
    changes = ("define.recipe-por.fit.steps=7",)
    blocks = load_experiment(FOLDER / "mini" / "table1.yaml", changes).grid
    steps = [defense.fit.steps for block in blocks for defense in block.defenses[-1:]]
    assert steps == [7, 500, 800, 800]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"base": "nowhere.yaml"}, "nowhere.yaml: no such experiment file"),
        ({"base": 3}, "base: expected a file in the folder of this one, got 3"),
        ({"define": ["small"]}, "define: expected names with a mapping each"),
        ({"grid": {**GRID, "defenses": ["recipee"]}}, "did you mean 'recipe'"),
        ({"grid": {"models": ["minilm"]}}, "at least one of tasks, displacements, probes"),
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
    with pytest.raises(SpecError, match="a base cannot have a base itself"):
        load_experiment(path)
