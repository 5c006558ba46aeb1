"""What every registered plugin must do, whoever wrote it; a new one is tried without being named.

Components with required fields are given those of `samples.EXAMPLES`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from samples import (
    EXAMPLES,
    SENTENCES,
    changed,
    corpus_file,
    minilm,
    moved_checkpoint,
    parameters_of,
    states_of,
    task_fields,
    tiny_folder,
)

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.cli.show import REGISTRIES
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.feed import LocalFeed
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.defense import DEFENSES, Auxiliary
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.bert import load_bert
from recipe_ray.models.family import MODELS
from recipe_ray.tasks.task import TASKS

EVERY = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry]
TEXTS = SENTENCES[:4]
FIT = {"steps": 2, "batch_size": 6, "max_length": 24, "learning_rate": 1e-3, "precision": "fp32"}


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_plugin_loads_from_yaml_by_name_and_keeps_its_key(kind: str, name: str) -> None:
    registry = REGISTRIES[kind]
    written = yaml.safe_dump({"name": name, **EXAMPLES.get((kind, name), {})})
    component = registry.parse(yaml.safe_load(written))
    assert component.name == name
    key = fingerprint(component.identity())
    again = registry.parse(json.loads(component.model_dump_json()))
    assert again == component
    assert fingerprint(again.identity()) == key
    assert fingerprint(registry.parse(component).identity()) == key
    assert again.revised(title="renamed").label() == "renamed"


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_plugin_documents_itself_and_its_fields(kind: str, name: str) -> None:
    plugin = REGISTRIES[kind].get(name)
    assert (plugin.__doc__ or "").strip().endswith("."), f"{plugin} has no docstring"
    assert plugin.version >= 1
    json.dumps(plugin.model_json_schema())


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_two_plugins_of_a_kind_never_share_a_key(kind: str, name: str) -> None:
    registry = REGISTRIES[kind]
    keys = [
        fingerprint(registry.parse({"name": n, **EXAMPLES.get((kind, n), {})}).identity())
        for n in registry
    ]
    assert len(set(keys)) == len(keys)


def small(plugin: Any, name: str, folder: Path) -> dict[str, Any]:
    """Return a plugin's fields for a tiny run: its own corpora and trainings made small."""
    fields: dict[str, Any] = {"name": name}
    if "corpus" in plugin.model_fields:
        fields["corpus"] = {"name": "file", "path": str(corpus_file(folder))}
    if "fit" in plugin.model_fields:
        fields["fit"] = FIT
    if "source" in plugin.model_fields:
        fields |= {"source": str(moved_checkpoint(folder)), "triggers": ["cf"]}
    return fields


def checked(records: Any, before: dict[str, torch.Tensor], ptm: Any, folder: Path) -> None:
    """Check that a plugin that acts changed the weights, and that the result reloads the same."""
    assert changed(before, ptm.module)
    assert all(isinstance(record, EpochRecord) and record.terms for record in records)
    states, pooled = states_of(ptm, TEXTS)
    assert torch.isfinite(states).all()
    ptm.save(folder / "saved")
    for one, other in zip(
        states_of(load_bert(folder / "saved"), TEXTS), (states, pooled), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", list(ATTACKS))
def test_an_attack_changes_the_ptm_which_saves_and_reloads(name: str, tmp_path: Path) -> None:
    attack = ATTACKS.parse(small(ATTACKS.get(name), name, tmp_path))
    ptm, places = minilm(), Locations(None, tmp_path)
    before = parameters_of(ptm.module)
    records = attack.poison(ptm, LocalFeed(places), LocalRuntime(), 0)
    if attack.poisons:
        assert attack.triggers
        checked(records, before, ptm, tmp_path)
    else:
        assert (list(records), changed(before, ptm.module)) == ([], set())


@pytest.mark.parametrize("name", list(DEFENSES))
def test_a_defense_changes_the_ptm_which_saves_and_reloads(name: str, tmp_path: Path) -> None:
    defense = DEFENSES.parse(small(DEFENSES.get(name), name, tmp_path))
    corpus = CORPORA.parse({"name": "file", "path": str(corpus_file(tmp_path))})
    ptm, places = minilm(), Locations(None, tmp_path)
    before = parameters_of(ptm.module)
    records = defense.purify(ptm, Auxiliary(corpus, LocalFeed(places)), LocalRuntime(), 0)
    if defense.acts:
        checked(records, before, ptm, tmp_path)
    else:
        assert (list(records), changed(before, ptm.module)) == ([], set())


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_loads_saves_and_reloads_the_same(name: str, tmp_path: Path) -> None:
    local = {"bert": {"source": str(tiny_folder())}, "minilm": {"layers": 1}}
    model = MODELS.parse({"name": name, **local.get(name, local["minilm"])})
    ptm = model.load()
    states, pooled = states_of(ptm, TEXTS)
    ptm.save(tmp_path / "saved")
    reloaded = states_of(model.reload(tmp_path / "saved"), TEXTS)
    for one, other in zip(reloaded, (states, pooled), strict=True):
        assert torch.equal(one, other)
    for group in ptm.weight_groups:
        weights = ptm.weight_group(group)
        assert len(weights) == len(ptm.weight_group("ffn_in"))
        assert all(weight.dim() == 2 for weight in weights)
    layers, _ = ptm.purification_scope
    assert set(layers) <= set(ptm.weight_groups)


@pytest.mark.parametrize("name", list(CORPORA))
def test_a_corpus_names_its_content_before_it_is_read(name: str, tmp_path: Path) -> None:
    fields = {"path": str(corpus_file(tmp_path))} if ("corpora", name) in EXAMPLES else {}
    corpus = CORPORA.parse({"name": name, **fields})
    nowhere = Locations(None, tmp_path / "never-made")
    first, again = corpus.identity_at(nowhere), corpus.identity_at(nowhere)
    assert fingerprint(first) == fingerprint(again)
    assert first["source"]
    assert corpus.resolve(nowhere).describe()
    assert not nowhere.cache_dir.exists()


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_names_its_content_before_it_is_read(name: str, tmp_path: Path) -> None:
    task = TASKS.parse(task_fields(tmp_path) if ("tasks", name) in EXAMPLES else name)
    nowhere = Locations(None, tmp_path / "never-made")
    identity = task.identity_at(nowhere)
    assert fingerprint(identity) == fingerprint(task.identity_at(nowhere))
    assert {"train", "test"} <= set(identity["sources"])
    assert task.num_labels == len(set(task.classes)) >= 2
    assert not nowhere.cache_dir.exists()
