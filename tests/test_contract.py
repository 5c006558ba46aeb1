"""What every registered plugin must do, whoever wrote it; a new one is tried without being named.

Components with required fields are given those of `samples.EXAMPLES`.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from contract_kits import KITS, TIMM, Kit, look
from image_files import as_parquet, captioned
from image_samples import labelled_samples
from samples import (
    EXAMPLES,
    SENTENCES,
    changed,
    corpus_file,
    moved_checkpoint,
    parameters_of,
    task_fields,
    tiny_folder,
)
from scan_samples import NamedPatch, NamedWords

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.cli.options import registries
from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.corpus import CORPORA, EmbeddedCorpus
from recipe_ray.data.image_corpus import ImageCorpus, PairCorpus
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.defense import DEFENSES, Auxiliary
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.objective import tensor_of
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.family import MODELS
from recipe_ray.tasks.catalog import LISTED
from recipe_ray.tasks.task import TASKS, ImageTask

EVERY = [(kind, name) for kind, registry in registries().items() for name in registry]
TEXTS = SENTENCES[:4]
NAMED: dict[str, Any] = {"text": NamedWords, "image": NamedPatch}  # detectors by what is read
FIT = {"steps": 2, "batch_size": 6, "max_length": 24, "learning_rate": 1e-3, "precision": "fp32"}


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_plugin_loads_from_yaml_by_name_and_keeps_its_key(kind: str, name: str) -> None:
    registry = registries()[kind]
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
    plugin = registries()[kind].get(name)
    assert (plugin.__doc__ or "").strip().endswith("."), f"{plugin} has no docstring"
    assert plugin.version >= 1
    json.dumps(plugin.model_json_schema())


def small(plugin: Any, name: str, folder: Path, kit: Kit) -> dict[str, Any]:
    """Return a plugin's fields for a tiny run: its own corpora and trainings made small."""
    fields: dict[str, Any] = {"name": name}
    if "corpus" in plugin.model_fields:
        fields["corpus"] = kit.corpus(folder)
    if "fit" in plugin.model_fields:
        fields["fit"] = FIT
    if "detectors" in plugin.model_fields:
        # a margin that any score is above
        fields |= {"detectors": [NAMED[kit.model.reads]()], "margin": 1e-9, "rounds": 1}
    if "source" in plugin.model_fields:
        fields |= {"source": str(moved_checkpoint(folder, kit.ptm())), "triggers": ["cf"]}
    return fields


def checked(
    records: Any, before: dict[str, torch.Tensor], ptm: Any, kit: Kit, folder: Path
) -> None:
    """Check that a plugin that acts changed the weights, and that the result reloads the same."""
    assert changed(before, ptm.module)
    assert all(isinstance(record, EpochRecord) and record.terms for record in records)
    seen = look(ptm, kit)
    assert torch.isfinite(seen).all()
    ptm.save(folder / "saved")
    assert torch.equal(look(kit.reload(folder / "saved"), kit), seen)


ATTACKED = [(n, make) for n in ATTACKS for make in KITS if KITS[make].fits(ATTACKS.get(n))]
DEFENDED = [(n, make) for n in DEFENSES for make in KITS if KITS[make].fits(DEFENSES.get(n))]


@pytest.mark.parametrize(("name", "make"), ATTACKED)
def test_an_attack_changes_the_ptm_which_saves_and_reloads(
    name: str, make: str, tmp_path: Path
) -> None:
    kit = KITS[make]
    attack = ATTACKS.parse(small(ATTACKS.get(name), name, tmp_path, kit))
    ptm, places = kit.ptm(), Locations(None, tmp_path)
    before = parameters_of(ptm.module)
    records = attack.poison(ptm, Workbench(LocalFeed(places), LocalRuntime(), 0))
    if attack.poisons:
        assert attack.triggers
        checked(records, before, ptm, kit, tmp_path)
    else:
        assert (list(records), changed(before, ptm.module)) == ([], set())


@pytest.mark.parametrize(("name", "make"), DEFENDED)
def test_a_defense_changes_the_ptm_which_saves_and_reloads(
    name: str, make: str, tmp_path: Path
) -> None:
    plugin, kit = DEFENSES.get(name), KITS[make]
    ptm, places = kit.ptm(), Locations(None, tmp_path)
    fields = small(plugin, name, tmp_path, kit)
    if "layers" in plugin.model_fields:
        fields["layers"] = ptm.purification_scope[0]
    if "limit" in plugin.model_fields:
        fields["limit"] = 0.05  # few weights of a fresh network are beyond 1
    corpus = CORPORA.parse(kit.corpus(tmp_path))
    before = parameters_of(ptm.module)
    defense = DEFENSES.parse(fields)
    bench = Workbench(LocalFeed(places), LocalRuntime(), 0)
    records = defense.purify(ptm, Auxiliary(corpus), bench)
    if defense.acts:
        checked(records, before, ptm, kit, tmp_path)
    else:
        assert (list(records), changed(before, ptm.module)) == ([], set())


def test_every_attack_and_every_defense_is_tried_on_some_architecture() -> None:
    assert {name for name, _ in ATTACKED} == set(ATTACKS)
    assert {name for name, _ in DEFENDED} == set(DEFENSES)


def test_every_architecture_is_attacked_and_defended_by_something_that_acts() -> None:
    assert {make for name, make in ATTACKED if ATTACKS.get(name).poisons} == set(KITS)
    assert {make for name, make in DEFENDED if DEFENSES.get(name).acts} == set(KITS)


# family -> the architectures it opens, whose kits stand for it
COVERED = {
    "bert": {"bert", "roberta"},
    "clip": {"clip"},
    "efficientnet-lite0": {"timm-efficientnet"},
    "minilm": {"bert"},
    "minilm-roberta": {"roberta"},
    "timm": {f"timm-{kind}" for kind in TIMM},
    "vgg": {"vgg"},
    "vit": {"vit"},
}


def test_every_family_has_the_kits_of_the_architectures_it_opens() -> None:
    assert COVERED.keys() == set(MODELS), "name the kits of a new family in COVERED"
    for name, makes in COVERED.items():
        assert makes <= KITS.keys(), f"make a kit of {name}"
        for make in makes:
            assert KITS[make].model.reads == MODELS.get(name).reads
            assert KITS[make].model.has == MODELS.get(name).has


@pytest.mark.parametrize("make", list(KITS))
def test_a_kit_is_of_its_architecture_and_holds_what_its_family_learns_from(
    make: str, tmp_path: Path
) -> None:
    kit = KITS[make]
    ptm = kit.ptm()
    assert ptm.make == make
    ptm.save(tmp_path / "saved")
    assert kit.model.recognises(tmp_path / "saved")
    assert CORPORA.parse(kit.corpus(tmp_path)).holds >= kit.model.learns_from


def tiny_model(name: str) -> Any:
    """Return a model that loads from here: the tiny BERT's folder where a source is required."""
    plugin, fields = MODELS.get(name), {"name": name, **EXAMPLES.get(("models", name), {})}
    if "source" in plugin.model_fields and plugin.model_fields["source"].is_required():
        fields["source"] = str(tiny_folder())
    if "layers" in plugin.model_fields:
        fields["layers"] = 1
    return MODELS.parse(fields)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_loads_as_an_architecture_it_opens_saves_and_reloads_the_same(
    name: str, tmp_path: Path
) -> None:
    model = tiny_model(name)
    ptm = model.load()
    assert ptm.make in COVERED[name]
    kit = KITS[ptm.make]
    seen = look(ptm, kit)
    ptm.save(tmp_path / "saved")
    assert torch.equal(look(model.reload(tmp_path / "saved"), kit), seen)
    for group in ptm.weight_groups:
        weights = [tensor_of(weight) for weight in ptm.weight_group(group)]
        assert weights
        assert all(weight.dim() >= 2 for weight in weights)
    layers, _ = ptm.purification_scope
    assert set(layers) <= set(ptm.weight_groups)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_saved_folder_is_recognised_by_its_own_family_alone(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.load().save(tmp_path / "saved")
    families = {other for other in MODELS if MODELS.get(other).recognises(tmp_path / "saved")}
    assert len(families) == 1
    found = MODELS.parse({"name": families.pop(), "source": str(tmp_path / "saved")})
    assert (found.reads, found.opens_with) == (model.reads, model.opens_with)
    assert not found.untrained
    assert not any(MODELS.get(other).recognises(tmp_path) for other in MODELS)


def somewhere(name: str, folder: Path) -> dict[str, Any]:
    """Return the path of a small corpus, where one has no other place to be read from."""
    plugin = CORPORA.get(name)
    if plugin.hub is not None or issubclass(plugin, EmbeddedCorpus):
        return {}
    if not issubclass(plugin, ImageCorpus | PairCorpus):
        return {"path": str(corpus_file(folder))}
    samples = labelled_samples(4) if issubclass(plugin, ImageCorpus) else captioned(4)
    return {"path": str(as_parquet(folder / "images.parquet", samples))}


@pytest.mark.parametrize("name", list(CORPORA))
def test_a_corpus_names_its_content_before_it_is_read(name: str, tmp_path: Path) -> None:
    corpus = CORPORA.parse({"name": name, **somewhere(name, tmp_path)})
    nowhere = Locations(None, tmp_path / "never-made")
    first, again = corpus.identity_at(nowhere), corpus.identity_at(nowhere)
    assert fingerprint(first) == fingerprint(again)
    assert first["source"]
    assert corpus.resolve(nowhere).describe()
    assert not nowhere.cache_dir.exists()


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_names_its_content_before_it_is_read(name: str, tmp_path: Path) -> None:
    plugin = TASKS.get(name)
    if issubclass(plugin, ImageTask) and not plugin.hub:
        file = str(as_parquet(tmp_path / "images.parquet", labelled_samples(4)))
        own = {**EXAMPLES.get(("tasks", name), {}), "path_train": file, "path_test": file}
        task = TASKS.parse({"name": name, **own})
    elif name in LISTED and not plugin.hub:
        file = str(corpus_file(tmp_path))
        task = TASKS.parse({"name": name, "path_train": file, "path_test": file})
    else:
        task = TASKS.parse(task_fields(tmp_path) if ("tasks", name) in EXAMPLES else name)
    nowhere = Locations(None, tmp_path / "never-made")
    identity = task.identity_at(nowhere)
    assert fingerprint(identity) == fingerprint(task.identity_at(nowhere))
    assert {"train", "test"} <= set(identity["sources"])
    assert task.num_labels == len(set(task.classes)) >= 2
    assert not nowhere.cache_dir.exists()
