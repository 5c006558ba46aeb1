"""Specs and experiment files: every error names where, what, what is allowed and the nearest."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from samples import COMMIT

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.attacks.por import POR
from recipe_ray.base.errors import SpecError
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import Component
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.spec import Experiment
from recipe_ray.models.family import MODELS
from recipe_ray.stages.backdoor import BackdoorStage
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.stage import STAGES

SMALL: dict[str, Any] = {
    "name": "small",
    "grid": {"models": [{"name": "minilm", "layers": 1}], "attacks": ["por"], "tasks": ["sst2"]},
}


def written(folder: Path, values: dict[str, Any] | str) -> Path:
    """Write an experiment file; return it."""
    file = folder / "experiment.yaml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return file


def grid(**changes: Any) -> dict[str, Any]:
    """Return the small experiment with other lists in its grid."""
    return {**SMALL, "grid": {**SMALL["grid"], **changes}}


def loaded(folder: Path, values: dict[str, Any] | str, *changes: str) -> Experiment:
    return load_experiment(written(folder, values), changes)


@pytest.mark.parametrize(
    ("values", "field", "said"),
    [
        ({**SMALL, "sedes": [1]}, "", "unknown field 'sedes'"),
        ({**SMALL, "lunch": {}}, "", "did you mean 'launch'?"),
        ({**SMALL, "launch": {"workers": {"purfy": 2}}}, "launch.workers", "mean 'purify'?"),
        (grid(attack=["por"]), "grid[0]", "did you mean 'attacks'?"),
        (grid(attacks=["pore"]), "grid[0].attacks[0]", "unknown attack 'pore' (did you mean 'por'"),
        (grid(defenses=["recipes"]), "grid[0].defenses[0]", "did you mean 'recipe'?"),
        (grid(models=["minlm"]), "grid[0].models[0]", "did you mean 'minilm'?"),
        (grid(tasks=["sst22"]), "grid[0].tasks[0]", "did you mean 'sst2'?"),
        (grid(auxiliaries=["bookcorpora"]), "grid[0].auxiliaries[0]", "mean 'bookcorpus'?"),
        (grid(attacks=[{"name": "por", "tigger": 1}]), "grid[0].attacks[0]", "mean 'triggers'?"),
        (
            grid(attacks=[{"name": "por", "fit": {"epoch": 1}}]),
            "grid[0].attacks[0].fit",
            "did you mean 'epochs'?",
        ),
        (grid(seeds=[-1]), "grid[0].seeds[0]", "got -1"),
        (grid(models=[{"name": "minilm", "layers": 7}]), "grid[0].models[0].layers", "got 7"),
        (grid(tasks=[]), "grid[0]: tasks", "at least one of tasks, displacements, probes"),
        (grid(seeds=0), "grid[0].seeds", "a list is expected, in YAML [a, b]"),
        (grid(attacks="por"), "grid[0].attacks", "a list is expected"),
        (grid(seeds=[]), "grid[0].seeds", "too few values: 1 or more are needed, there are 0"),
        (grid(seeds=["a"]), "grid[0].seeds[0]", "a whole number is expected (got 'a')"),
        (grid(seeds=[0.5]), "grid[0].seeds[0]", "a whole number is expected (got 0.5)"),
        ({**SMALL, "held_out": "much"}, "held_out", "a number is expected (got 'much')"),
        ({**SMALL, "launch": {"stream": 7}}, "launch.stream", "true or false is expected (got 7)"),
        ({**SMALL, "launch": 1}, "launch", "a mapping is expected"),
        ({**SMALL, "description": "REPLACE_WORDS"}, "", "fill in what says REPLACE: description"),
        (
            grid(models=[{"name": "bert", "source": "s3://REPLACE_BUCKET/x"}]),
            "",
            "fill in what says REPLACE: grid.models[0].source",
        ),
        ({"name": "small"}, "grid", "Field required"),
    ],
)
def test_a_wrong_field_is_named_with_file_place_and_nearest(
    tmp_path: Path, values: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(SpecError) as caught:
        loaded(tmp_path, values)
    message = str(caught.value)
    assert f"{tmp_path}/experiment.yaml: {field}" in message
    assert said in message


def test_an_unknown_field_lists_those_allowed(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match="allowed: backdoor, displacement, finetune, pretrain, probe, purify"
    ):
        loaded(tmp_path, {**SMALL, "launch": {"workers": {"x": 2}}})


def test_a_nested_spec_given_in_part_keeps_the_plugins_own_defaults(tmp_path: Path) -> None:
    experiment = loaded(
        tmp_path,
        {**grid(attacks=[{"name": "por", "fit": {"epochs": 5}}]), "finetuning": {"epochs": 1}},
    )
    (attack,) = experiment.grid[0].attacks
    assert isinstance(attack, POR)
    # POR's own defaults (docs/method.md section 4), not those of any training
    assert (attack.fit.epochs, attack.fit.batch_size, attack.fit.learning_rate) == (5, 24, 1e-5)
    assert (experiment.finetuning.epochs, experiment.finetuning.max_length) == (1, 128)
    stage = FinetuneStage(model="minilm", task="sst2", triggers=(), fit={"steps": 3}, seed=0)
    assert (stage.fit.steps, stage.fit.max_length) == (3, 128)


def test_a_spec_cannot_be_changed_in_place() -> None:
    attack = POR()
    with pytest.raises(ValueError, match="frozen"):
        attack.insertions = 2
    assert attack.revised(insertions=2).insertions == 2
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        attack.revised(insertions=0)


def test_a_name_registered_twice_is_an_error_even_for_classes_of_one_name() -> None:
    registry: Registry[Component] = Registry("thing", "recipe_ray.attacks")
    mine = registry.register("mine")(type("Mine", (Component,), {"__module__": "a"}))
    assert registry.get("mine") is mine
    with pytest.raises(SpecError, match=r"thing 'mine' is registered twice: a\.Mine and a\.Other"):
        registry.register("mine")(type("Other", (Component,), {"__module__": "a"}))
    with pytest.raises(SpecError, match=r"registered twice: a\.Mine and b\.Mine"):
        registry.register("mine")(type("Mine", (Component,), {"__module__": "b"}))
    assert registry.get("mine") is mine


@pytest.mark.parametrize("value", [3, ["por"], {"fit": {}}, {"name": 3}, None])
def test_what_is_no_component_says_what_one_is(value: object) -> None:
    with pytest.raises(SpecError, match="a attack is a name or a mapping with 'name'"):
        ATTACKS.parse(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\ngrid: {}\nname: b\n", "line 3: the key 'name' is given twice"),
        ("name: a\ngrid:\n  tasks: [sst2]\n  tasks: [hsol]\n", "line 4: the key 'tasks'"),
        ("name: [", "not valid YAML"),
        ("- a\n- b\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("name: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_experiment_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SpecError, match=r"experiment\.yaml") as caught:
        loaded(tmp_path, text)
    assert said in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"nowhere\.yaml: no such experiment file"):
        load_experiment(tmp_path / "nowhere.yaml")
    with pytest.raises(SpecError, match="a folder"):
        load_experiment(tmp_path)


def test_set_changes_fields_in_mappings_and_lists(tmp_path: Path) -> None:
    experiment = loaded(
        tmp_path,
        SMALL,
        "launch.workers.purify=2",
        "grid.models.0.layers=3",
        "grid.seeds=[0, 1]",
        "grid.attacks.0={name: por, fit: {steps: 7}}",
        "finetuning.learning_rate=5e-5",
        "description=two words",
    )
    (block,) = experiment.grid
    assert experiment.launch.workers["purify"] == 2
    assert block.models[0] == MODELS.parse({"name": "minilm", "layers": 3})
    assert block.seeds == (0, 1)
    assert block.attacks == (ATTACKS.parse({"name": "por", "fit": {"steps": 7}}),)
    assert experiment.finetuning.learning_rate == 5e-5
    assert experiment.description == "two words"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("launch", "expected a.b=value"),
        ("=3", "expected a.b=value"),
        ("launch.wrkers.purify=2", "did you mean 'workers'?"),
        ("grid.models.4.layers=2", "'4' is not a place in a list of 1"),
        ("grid.models.first.layers=2", "'first' is not a place in a list of 1"),
        ("grid.models.1=minilm", "'1' is not a place in a list of 1"),
        ("name.a=2", "'name' is 'small', which has no fields"),
        ("grid.attacks.0.fit.steps=2", "'0' is 'por', which has no fields"),
        ("grid.attacks.0.insertions=2", "'0' is 'por', which has no fields"),
        ("name=[", "not valid YAML"),
    ],
)
def test_a_bad_set_says_which_part_is_wrong(tmp_path: Path, change: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        loaded(tmp_path, SMALL, change)
    assert said in str(caught.value)


def test_an_experiment_and_its_stages_keep_their_keys_through_json(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, grid(defenses=["none", {"name": "recipe", "weight_factor": 0.5}]))
    again = Experiment.model_validate_json(experiment.model_dump_json())
    assert fingerprint(again.identity()) == fingerprint(experiment.identity())
    model = MODELS.parse({"name": "bert", "source": "a/b", "revision": COMMIT})
    stage = FinetuneStage(
        model=model,
        parent=BackdoorStage(
            model=model, parent=PretrainStage(model=model, seed=0), attack="neuba", seed=0
        ),
        task={"name": "sst2", "train_size": 10},
        triggers=("≈",),
        seed=3,
    )
    copy = STAGES.parse(stage.model_dump(mode="json"))
    assert copy.key == stage.key
    assert [one.key for one in copy.lineage()] == [one.key for one in stage.lineage()]


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), float("inf"), Path("a"), {1: 2}, b"x"])
def test_what_cannot_be_hashed_faithfully_is_refused_with_its_path(value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"\$\.a\[1\]"):
        fingerprint({"a": [0, value]})


def test_a_key_does_not_depend_on_the_order_of_fields_nor_on_1_being_written_1_0() -> None:
    assert fingerprint({"a": 1, "b": [2.0]}) == fingerprint({"b": (2,), "a": 1.0})
    assert len({fingerprint(v) for v in (1, "1", True, None, [1], 1.5)}) == 6


def test_cpus_are_one_number_for_all_or_one_a_kind_of_stage(tmp_path: Path) -> None:
    def cpus(value: object) -> dict[str, int]:
        launch = loaded(tmp_path, {**SMALL, "launch": {"cpus_per_worker": value}}).launch
        found: dict[str, int] = launch.cpus_per_worker
        return found

    assert cpus(2) == dict.fromkeys(STAGES, 2)
    assert cpus({"pretrain": 2}) == {"pretrain": 2}
    with pytest.raises(SpecError, match=r"cpus_per_worker.*did you mean 'purify'"):
        cpus({"purfy": 2})
