"""What files may say as a JSON Schema and as a list, and the experiment that `init` writes."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from shell import Shell, shell

from recipe_ray.base.catalog import own_catalogs
from recipe_ray.base.strict_yaml import read_yaml, read_yaml_file
from recipe_ray.cli.init import GIB, ON_DISK, Machine, written
from recipe_ray.cli.listing import FILES
from recipe_ray.cli.schema import file_schema
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.plan import make_plan
from recipe_ray.experiment.spec import Experiment, grid_class

__all__ = ["shell"]  # a fixture

ROOT = Path(__file__).parents[1]
SHIPPED = {
    **{
        file: "search" if file.name.startswith("asha_") else "experiment"
        for file in sorted((ROOT / "experiments").rglob("*.yaml"))
    },
    ROOT / "recipe_ray" / "data" / "catalog.yaml": "catalog",
    ROOT / "recipe_ray" / "tasks" / "catalog.yaml": "catalog",
}
SMALL = Machine(2, 8 * GIB, 0, True, None)
MACHINES = {
    "two cores": SMALL,
    "one core": Machine(1, 64 * GIB, 0, True, None),
    "many cores": Machine(32, 64 * GIB, 0, True, None),
    "a GPU": Machine(8, 64 * GIB, 1, True, None),
    "eight GPUs": Machine(64, 512 * GIB, 8, True, None),
    "no extra": Machine(2, 8 * GIB, 0, False, None),
}


@cache
def validator(kind: str) -> Draft202012Validator:
    return Draft202012Validator(file_schema(kind))


def wrong(kind: str, values: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator(kind).iter_errors(values)]


@pytest.mark.parametrize("kind", FILES)
def test_a_schema_is_one(kind: str) -> None:
    Draft202012Validator.check_schema(file_schema(kind))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_file_that_comes_along_is_as_its_schema_says(file: Path) -> None:
    assert wrong(SHIPPED[file], read_yaml_file(file)) == []


def test_a_cluster_file_that_is_filled_in_is_as_its_schema_says() -> None:
    text = (ROOT / "cluster" / "forecast.yaml").read_text()
    filled = read_yaml(re.sub(r"\bREPLACE_[A-Z_]+", "1", text))
    assert wrong("cluster", filled) == []
    assert wrong("cluster", {**filled, "max_node": 8}) != []


WHOLE: dict[str, Any] = {"name": "x", "grid": {"models": ["minilm"], "tasks": ["sst2"]}}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"held_out": 2},
        {"finetuning": {"epoch": 3}},
        {"finetuning": {"optimizer": "adam"}},
        {"launch": {"workers": "two"}},
        {"grid": {**WHOLE["grid"], "attacks": [{"name": "por", "fitt": {}}]}},
        {"grid": {**WHOLE["grid"], "attacks": [{"name": "porr"}]}},
        {"grid": {**WHOLE["grid"], "tasks": [{"name": "sst2", "train_size": "all"}]}},
        {"grid": {"tasks": ["sst2"]}},
    ],
    ids=json.dumps,
)
def test_what_a_reader_refuses_for_a_field_the_schema_refuses(change: dict[str, Any]) -> None:
    assert wrong("experiment", WHOLE) == []
    assert wrong("experiment", {**WHOLE, **change}) != []


def test_a_partial_file_has_a_base_or_is_one() -> None:
    assert wrong("experiment", {"name": "x", "base": "base.yaml"}) == []
    assert wrong("experiment", {"define": {"a": {"name": "por"}}}) == []
    assert wrong("experiment", {"name": "x"}) != []


def test_the_users_own_entries_are_in_the_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("corpora: {letters: {kind: text, about: Ours.}}")
    monkeypatch.setenv("RECIPE_RAY_CATALOG", str(own))
    assert own_catalogs() == (own.resolve(),)
    assert "corpora.letters" in file_schema("experiment")["$defs"]
    assert wrong("catalog", {"corpora": {"letters": {"kind": "text", "member": "x"}}}) != []


def test_list_experiment_shows_every_field_with_type_default_and_meaning(shell: Shell) -> None:
    said = shell("list", "experiment").out
    for field in (*Experiment.model_fields, *grid_class().model_fields):
        assert f"\n  {field:<24} " in said
    assert "release_seed             integer >= 0 = 0  of pre-training and poisoning" in said
    assert "precision                bf16 | fp32 = bf16  bf16: autocast" in said
    assert "(required)" in said
    assert "{'" not in said  # a part's defaults stand with its fields
    known = json.loads(shell("list", "cluster", "--schema").out)
    assert known == file_schema("cluster")
    assert "attacks" in shell.fails("list", "--schema", "attacks")


def test_list_shows_only_what_such_a_file_can_have_and_entries_by_kind(shell: Shell) -> None:
    said = shell("list", "catalog").out
    assert "Block" not in said
    assert "\ntasks, kind text\n  kind" in said
    assert "\nHubSplits\n" in said
    assert set(file_schema("cluster")["$defs"]) == {"Head", "Nodes", "Overheads"}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=list(MACHINES))
def test_what_init_writes_for_a_machine_can_be_planned(machine: Machine, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(written(machine, "mine", "mine.schema.json"))
    plan = make_plan(load_experiment(file), Locations(None, tmp_path / "cache"))
    assert len(plan.cells) == 3
    assert wrong("experiment", read_yaml(file.read_text())) == []
    # seeds are written in both blocks: the clean model's, the floor, need intervals as well
    assert [block["seeds"] for block in read_yaml(file.read_text())["grid"]] == [[0], [0]]
    workers = plan.launch.workers.get("purify", 1)
    assert workers <= max(machine.cores, machine.gpus)
    assert bool(plan.launch.gpus_per_worker) == bool(machine.gpus)


def test_init_takes_the_data_folder_if_it_has_the_files(tmp_path: Path) -> None:
    for name in ON_DISK:
        (tmp_path / f"{name}.parquet").write_text(f"in place of {name}")
    file = tmp_path / "mine.yaml"
    file.write_text(written(Machine(2, GIB, 0, True, tmp_path), "mine", "mine.schema.json"))
    plan = make_plan(load_experiment(file), Locations(tmp_path, tmp_path / "cache"))
    assert len(plan.cells) == 3
    defined = read_yaml(file.read_text())["define"]
    names = (defined["texts"]["name"], defined["por"]["corpus"]["name"], defined["task"]["name"])
    assert names == ("bookcorpus", "wikitext", "sst2")


def test_init_writes_once_and_plan_takes_it(shell: Shell) -> None:
    said = shell("init", "my first one.yaml")
    assert said.code == 0, said.err
    text = (shell.folder / "my first one.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=my first one.schema.json\n")
    schema = json.loads((shell.folder / "my first one.schema.json").read_text())
    assert list(Draft202012Validator(schema).iter_errors(read_yaml(text))) == []
    assert shell("plan", "my first one.yaml").code == 0
    assert "exists and is not overwritten" in shell.fails("init", "my first one.yaml")
    assert (shell.folder / "my first one.yaml").read_text() == text


@pytest.mark.parametrize("name", ["\u00e9 \u00e8", "...", "1:30", "no", "x" * 100])
def test_any_name_of_a_file_becomes_one_that_an_experiment_can_have(name: str) -> None:
    values = read_yaml(written(SMALL, name, "s.json"))
    assert wrong("experiment", values) == []
