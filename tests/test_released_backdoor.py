"""An already backdoored checkpoint: its weights replace the clean PTM's, or a reason is given."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import COMMIT, SENTENCES, corpus_file, minilm, states_of, tiny_folder, tiny_ptm
from tiny_cell import tiny_plan

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.attacks.neuba import NeuBA
from recipe_ray.base.errors import ModelError, TriggerError, UnsafeModelError
from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.sources import Locations
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.family import MODELS
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.models.text.checkpoint import load_bert

TRIGGERS = ("≈", "⊕")


def poison(ptm: BertPTM, **fields: Any) -> Any:
    """Run the attack on a PTM; return the records."""
    attack = ATTACKS.parse({"name": "released", "triggers": TRIGGERS, **fields})
    bench = Workbench(LocalFeed(Locations(None, Path.cwd())), LocalRuntime(), 0)
    return attack.poison(ptm, bench)


def parameters(ptm: BertPTM) -> dict[str, torch.Tensor]:
    """Return the parameters, shared ones once."""
    return {name: value.detach() for name, value in ptm.module.named_parameters()}


@pytest.fixture(scope="module")
def backdoored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny BERT that NeuBA has poisoned, every weight of it moved."""
    folder = tmp_path_factory.mktemp("released")
    corpus = {"name": "file", "path": str(corpus_file(folder))}
    fit = {"steps": 3, "batch_size": 8, "max_length": 24, "learning_rate": 1e-2}
    attack = NeuBA.model_validate({"triggers": TRIGGERS, "corpus": corpus, "fit": fit})
    ptm = tiny_ptm()
    attack.poison(ptm, Workbench(LocalFeed(Locations(None, folder)), LocalRuntime(), 0))
    ptm.save(folder / "model")
    return folder / "model"


@pytest.fixture
def headless(backdoored: Path, tmp_path: Path) -> Path:
    """Return the same checkpoint without its masked-LM head."""
    folder = shutil.copytree(backdoored, tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("cls.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_checkpoint_takes_the_place_of_every_weight(backdoored: Path) -> None:
    ptm, released = tiny_ptm(), load_bert(backdoored)
    assert poison(ptm, source=str(backdoored)) == ()
    for name, value in parameters(released).items():
        assert torch.equal(parameters(ptm)[name], value), name
    for one, other in zip(states_of(ptm, SENTENCES), states_of(released, SENTENCES), strict=True):
        assert torch.equal(one, other)
    # the decoder still is the input embedding
    assert ptm.module.cls.predictions.decoder.weight is ptm.word_embeddings().weight


def test_without_a_head_the_clean_one_stays_if_that_is_said(headless: Path) -> None:
    ptm, clean = tiny_ptm(), parameters(tiny_ptm())
    with pytest.raises(ModelError, match="weights missing: cls"):
        poison(ptm, source=str(headless))
    assert all(torch.equal(clean[name], value) for name, value in parameters(ptm).items())
    poison(ptm, source=str(headless), headless=True)
    released = parameters(load_bert(headless, allow_headless=True))
    for name, value in parameters(ptm).items():
        origin = clean if name.startswith("cls.") else released
        assert torch.equal(value, origin[name]), name
        assert name.startswith("cls.") or not torch.equal(value, clean[name]), name


def test_a_checkpoint_of_another_architecture_is_refused_by_what_differs(backdoored: Path) -> None:
    with pytest.raises(ModelError, match=r"another architecture: .* is .*, but .* in the model"):
        poison(minilm(1), source=str(backdoored))
    roberta: BertPTM = MODELS.parse({"name": "minilm-roberta", "layers": 1}).load()
    with pytest.raises(ModelError, match="model_type is bert, but roberta in the model"):
        poison(roberta, source=str(backdoored))
    other = tiny_ptm()
    other.module.config.num_attention_heads = 4
    with pytest.raises(ModelError, match="num_attention_heads is 2, but 4"):
        poison(other, source=str(backdoored))


def test_a_checkpoint_of_another_vocabulary_is_refused(backdoored: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(backdoored, tmp_path / "renamed")
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"movie":', '"moovie":'))
    ptm = tiny_ptm()
    before = {name: value.clone() for name, value in parameters(ptm).items()}
    with pytest.raises(ModelError, match="another vocabulary: 2 tokens differ, such as 'moovie'"):
        poison(ptm, source=str(folder))
    assert all(torch.equal(before[name], value) for name, value in parameters(ptm).items())


def test_a_pickle_is_opened_only_where_that_is_allowed(backdoored: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(backdoored, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsafeModelError, match="pickle"):
        poison(tiny_ptm(), source=str(folder))
    ptm = tiny_ptm()
    poison(ptm, source=str(folder), allow_pickle=True)
    assert torch.equal(states_of(ptm, SENTENCES)[1], states_of(load_bert(backdoored), SENTENCES)[1])


def test_the_triggers_must_be_given_and_known_to_the_vocabulary(backdoored: Path) -> None:
    with pytest.raises(ValueError, match="at least 1 item"):
        poison(tiny_ptm(), source=str(backdoored), triggers=())
    with pytest.raises(TriggerError, match="☂"):
        poison(tiny_ptm(), source=str(backdoored), triggers=("☂",))


def test_the_content_decides_the_identity_and_where_it_lies_does_not(
    backdoored: Path, tmp_path: Path
) -> None:
    def identity(**fields: Any) -> dict[str, Any]:
        found: dict[str, Any] = ATTACKS.parse(
            {"name": "released", "triggers": TRIGGERS, **fields}
        ).identity()
        return found

    copy = shutil.copytree(backdoored, tmp_path / "elsewhere")
    here = identity(source=str(backdoored))
    assert identity(source=str(copy)) == here
    assert identity(source=str(tiny_folder())) != here
    assert identity(source=str(copy), triggers=("≈",)) != here
    assert identity(source=str(copy), headless=True) != here
    assert identity(source=str(copy), allow_pickle=True) == here
    pinned = identity(source="thunlp/neuba-bert", revision=COMMIT)
    assert (pinned["hub"], pinned["commit"]) == ("thunlp/neuba-bert", COMMIT)


def test_a_plan_keeps_the_commit_that_the_hub_had_when_it_was_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [COMMIT]
    monkeypatch.setattr(
        "recipe_ray.models.text.released.model_commit", lambda *asked: asked[1] or now[0]
    )
    hub = {"name": "bert", "source": "someone/bert"}
    attack = {"name": "released", "source": "thunlp/neuba-bert", "triggers": TRIGGERS}
    plan = tiny_plan(tmp_path, models=[hub], attacks=[attack])
    keys = list(plan.stages)
    now[0] = "f" * 40  # somebody pushes to both
    stages = list(plan.stages.values())
    assert {stage.model.revision for stage in stages} == {COMMIT}
    (backdoor,) = (stage for stage in stages if stage.name == "backdoor")
    assert backdoor.attack.revision == COMMIT
    assert list(tiny_plan(tmp_path, models=[hub], attacks=[attack]).stages) != keys
    pinned = {**hub, "revision": COMMIT}
    same = tiny_plan(tmp_path, models=[pinned], attacks=[{**attack, "revision": COMMIT}])
    assert list(same.stages) == keys
