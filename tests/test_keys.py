"""Identity: what moves a stage's key and what must not; every key that moved is listed."""

import json
from pathlib import Path
from typing import Any

import pytest
from golden_keys import CONTENT, FILE, current_keys, moved, some_stages
from samples import COMMIT, corpus_file, task_fields, tiny_folder

from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.plan import make_plan
from recipe_ray.experiment.spec import Experiment
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import MODELS
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import STAGES

PURIFY = some_stages()["purify"]


def test_no_key_moved_unnoticed() -> None:
    said = moved(json.loads(FILE.read_text()), current_keys())
    assert not said, f"\n{said}"


def test_a_key_that_moved_is_listed_with_what_to_do() -> None:
    said = moved({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "d": "4"})
    assert said.splitlines()[:3] == ["moved: b: 2 -> 9", "new: d", "gone: c"]
    assert "raise `version`" in said
    assert "python -m tests.golden_keys" in said
    assert moved({"a": "1"}, {"a": "1"}) == ""


def key(**changes: Any) -> str:
    """Return the key of the purify stage after fields changed, as read from JSON."""
    return str(STAGES.parse({**PURIFY.model_dump(mode="json"), **changes}).key)


def recipe(**fields: Any) -> dict[str, Any]:
    return {"name": "recipe", **fields}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"title": "another-name"},
        {"defense": recipe(title="mine")},
        {"defense": recipe(weight_factor=1)},
        {"corpus": {"name": "bookcorpus", "path": "/some/where.parquet"}},
        {"corpus": {"name": "bookcorpus", "revision": "main"}},
        {"corpus": {"name": "bookcorpus", "title": "books"}},
    ],
)
def test_names_and_places_do_not_move_a_key(changes: dict[str, Any]) -> None:
    assert key(**changes) == PURIFY.key


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"held_out": 0.1},
        {"content": {"source": "other"}},
        {"defense": "none"},
        {"defense": recipe(weight_factor=0.5)},
        {"defense": recipe(layers=["ffn_in", "query"])},
        {"defense": recipe(trainable="all")},
        {"corpus": {"name": "webtext"}},
        {"corpus": {"name": "bookcorpus", "size": 1000}},
        {"corpus": {"name": "bookcorpus", "size": None}},
        {"corpus": {"name": "bookcorpus", "sample_seed": 1}},
        {"corpus": {"name": "bookcorpus", "column": "sentence"}},
        {"parent": None},
    ],
)
def test_what_can_change_a_number_moves_the_key(changes: dict[str, Any]) -> None:
    assert key(**changes) != PURIFY.key


OTHER_FIT: dict[str, Any] = {
    "epochs": 3,
    "steps": 7,
    "batch_size": 8,
    "max_length": 32,
    "optimizer": "sgd",
    "learning_rate": 1e-3,
    "epsilon": 1e-6,
    "momentum": 0.5,
    "weight_decay": 0.1,
    "schedule": "constant",
    "warmup_share": 0.1,
    "clip_norm": None,
    "precision": "fp32",
    "dropout": False,
}


@pytest.mark.parametrize("field", sorted(FitSpec.model_fields))
def test_every_field_of_a_training_moves_the_key(field: str) -> None:
    assert key(defense=recipe(fit={field: OTHER_FIT[field]})) != PURIFY.key


def test_a_new_version_moves_its_own_and_all_later_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: stage.key for name, stage in some_stages().items()}
    monkeypatch.setattr(STAGES.get("backdoor"), "version", 2)
    after = {name: stage.key for name, stage in some_stages().items()}
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {"backdoor", "purify", "finetune", "probe"}


def test_a_parents_seed_moves_the_childs_key_but_the_model_counts_once() -> None:
    parent = PURIFY.parent
    assert parent is not None
    assert PURIFY.revised(parent=parent.revised(seed=9)).key != PURIFY.key
    # with a parent, what it made is the input; which model that came from is in its key
    assert PURIFY.revised(model="minilm").key == PURIFY.key
    rootless = PurifyStage(
        model="minilm", defense="recipe", corpus="bookcorpus", seed=0, content=CONTENT
    )
    assert rootless.revised(model={"name": "minilm", "layers": 3}).key != rootless.key


def test_a_models_folder_is_known_by_its_files(tmp_path: Path) -> None:
    copied = tmp_path / "moved-elsewhere"
    copied.mkdir()
    for file in tiny_folder().iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    keys = [
        fingerprint(MODELS.parse({"name": "bert", "source": str(place)}).identity())
        for place in (tiny_folder(), copied)
    ]
    assert keys[0] == keys[1]
    (copied / "config.json").write_text((copied / "config.json").read_text() + "\n")
    changed = MODELS.parse({"name": "bert", "source": str(copied)}).identity()
    assert fingerprint(changed) != keys[0]


def test_a_hub_model_is_known_by_its_commit() -> None:
    commits = (COMMIT, COMMIT[::-1])
    keys = [
        fingerprint(MODELS.parse({"name": "bert", "source": "a/b", "revision": c}).identity())
        for c in commits
    ]
    assert keys[0] != keys[1]


def test_how_it_runs_does_not_move_an_experiments_keys(tmp_path: Path) -> None:
    corpus = {"name": "file", "path": str(corpus_file(tmp_path))}
    base = {
        "name": "small",
        "grid": {
            "models": [{"name": "bert", "source": str(tiny_folder())}],
            "attacks": [{"name": "neuba", "corpus": corpus}],
            "defenses": ["recipe"],
            "auxiliaries": [corpus],
            "tasks": [task_fields(tmp_path)],
        },
    }
    launch = {"workers": {"purify": 2}, "cpus_per_worker": 2, "gpus_per_worker": 1, "stream": True}
    plans = [
        make_plan(Experiment.model_validate(values), Locations(None, tmp_path))
        for values in (base, {**base, "name": "other", "description": "x", "launch": launch})
    ]
    assert list(plans[0].stages) == list(plans[1].stages)
    reseeded = make_plan(
        Experiment.model_validate({**base, "release_seed": 1}), Locations(None, tmp_path)
    )
    assert not set(plans[0].stages) & set(reseeded.stages)


def test_moving_a_corpus_file_keeps_its_identity_and_editing_it_does_not(tmp_path: Path) -> None:
    places = Locations(None, tmp_path)
    file = corpus_file(tmp_path)
    before = CORPORA.parse({"name": "file", "path": str(file)}).identity_at(places)
    other = file.rename(tmp_path / "other.txt")
    corpus = CORPORA.parse({"name": "file", "path": str(other)})
    assert corpus.identity_at(places) == before
    other.write_text(other.read_text() + "One more sentence.\n")
    assert corpus.identity_at(places) != before
