"""PTMs: what they compute, what transformers makes of a saved folder, and what is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from samples import (
    SENTENCES,
    minilm,
    packed,
    raised_by,
    reconfigured,
    states_of,
    tiny_ptm,
)
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from recipe_ray.base.errors import ModelError, UnsafeModelError, UserError
from recipe_ray.base.loading import read_weights
from recipe_ray.models.family import MODELS
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.models.text.checkpoint import load_bert

TEXTS = SENTENCES[:6]


@torch.inference_mode()
def padded(model: Any, folder: Path) -> tuple[Tensor, Tensor]:
    """Return transformers' states [T, H] without padding, and pooler outputs [B, H]."""
    tokens = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    output = model.eval()(**tokens)
    return output.last_hidden_state[tokens["attention_mask"].bool()], output.pooler_output


@pytest.mark.parametrize("make", [lambda: minilm(2), tiny_ptm])
def test_a_saved_ptm_computes_in_transformers_what_it_computes_here(
    make: Callable[[], BertPTM], tmp_path: Path
) -> None:
    ptm = make()
    ptm.save(tmp_path)
    theirs, ours = padded(AutoModel.from_pretrained(tmp_path), tmp_path), states_of(ptm, TEXTS)
    for one, other in zip(theirs, ours, strict=True):
        assert torch.allclose(one, other, atol=2e-5)


@torch.inference_mode()
def test_the_saved_head_gives_transformers_the_same_masked_lm_loss(tmp_path: Path) -> None:
    ptm = tiny_ptm()
    ptm.save(tmp_path)
    ids = ptm.tokenizer(TEXTS, padding=True, return_tensors="pt")
    labels = torch.where(ids["attention_mask"].bool(), ids["input_ids"], -100)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    theirs = float(model(**ids, labels=labels).loss)
    batch = packed(ptm, TEXTS)
    every = torch.arange(batch.num_tokens)
    batch = batch.with_targets(every.numpy(), batch.tokens[every].numpy())
    ptm.module.eval()
    term = ptm.masked_lm(ptm.module, ptm.hidden(ptm.module, batch, batch.where), batch.targets)
    assert float(term.total) / (term.count or 0) == pytest.approx(theirs, rel=1e-5)


def test_minilm_keeps_the_layers_that_are_listed() -> None:
    whole = MODELS.parse({"name": "minilm"}).load().module.base_model.encoder.layer
    kept = MODELS.parse({"name": "minilm", "layers": [0, 5]}).load().module
    assert kept.config.num_hidden_layers == 2
    for layer, number in zip(kept.base_model.encoder.layer, (0, 5), strict=True):
        assert torch.equal(layer.output.dense.weight, whole[number].output.dense.weight)
    first = MODELS.parse({"name": "minilm", "layers": 2})
    listed = MODELS.parse({"name": "minilm", "layers": [0, 1]})
    pairs = zip(first.load().module.parameters(), listed.load().module.parameters(), strict=True)
    for one, other in pairs:
        assert torch.equal(one, other)


@pytest.mark.parametrize("layers", [0, 7, [], [6], [2, 0], [1, 1]])
def test_minilm_takes_no_layers_that_it_has_not_or_in_another_order(layers: object) -> None:
    with pytest.raises(ValidationError, match="layers"):
        MODELS.parse({"name": "minilm", "layers": layers})


def test_minilm_in_roberta_clothes_computes_what_minilm_computes(tmp_path: Path) -> None:
    ptm = MODELS.parse({"name": "minilm-roberta", "layers": 1}).load()
    for one, other in zip(states_of(ptm, TEXTS), states_of(minilm(1), TEXTS), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    ptm.save(tmp_path)
    theirs = padded(AutoModel.from_pretrained(tmp_path), tmp_path)
    for one, other in zip(theirs, states_of(ptm, TEXTS), strict=True):
        assert torch.allclose(one, other, atol=2e-5)


def test_a_text_is_cut_to_the_places_a_model_has() -> None:
    for name in ("minilm", "minilm-roberta"):
        ptm = MODELS.parse({"name": name, "layers": 1}).load()
        assert ptm.encoder(10_000).max_length == 512
        assert states_of(ptm, [" ".join(SENTENCES * 2)])[0].isfinite().all()


# --- pickles


def pickled(folder: Path, content: Any = None) -> Path:
    """Replace the safetensors of a folder by a pickle; return it."""
    weights = folder / "model.safetensors"
    torch.save(load_file(weights) if content is None else content, folder / "pytorch_model.bin")
    weights.unlink()
    return folder


def test_pickled_weights_are_read_only_when_allowed(folder: Path) -> None:
    before = states_of(load_bert(folder), TEXTS)
    pickled(folder)
    with pytest.raises(UnsafeModelError, match=r"pickle \(pytorch_model\.bin\).*--allow-pickle"):
        load_bert(folder)
    again = states_of(load_bert(folder, allow_pickle=True), TEXTS)
    assert all(torch.equal(one, other) for one, other in zip(before, again, strict=True))


def test_safetensors_win_over_a_pickle_beside_them(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    assert load_bert(folder, allow_pickle=True).hidden_size == 32


class Malicious:
    """Unpickles to the making of a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"bert.pooler": bad}])
@pytest.mark.parametrize("allow_pickle", [False, True])
def test_a_malicious_pickle_never_runs(
    folder: Path, tmp_path: Path, wrap: Callable[[Any], Any], allow_pickle: bool
) -> None:
    proof = tmp_path / "proof"
    pickled(folder, wrap(Malicious(proof)))
    with pytest.raises(UnsafeModelError):
        load_bert(folder, allow_pickle=allow_pickle)
    assert not proof.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert proof.exists(), "the pickle of this test does nothing"


@pytest.mark.parametrize("content", [b"", b"x" * 99, b"PK\x03\x04" + b"0" * 99, b"\x80\x02}q\x00."])
def test_bytes_that_are_no_weights_are_refused_by_name(folder: Path, content: bytes) -> None:
    (pickled(folder) / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"pytorch_model\.bin|weights missing"):
        load_bert(folder, allow_pickle=True)


def test_a_models_own_code_never_runs(folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    (folder / "own.py").write_text(f"open({str(proof)!r}, 'w')\nclass Model: pass\n")
    for file in ("config.json", "tokenizer_config.json"):
        values = json.loads((folder / file).read_text())
        names = {"AutoModel": "own.Model", "AutoModelForMaskedLM": "own.Model"}
        values["auto_map"] = {**names, "AutoTokenizer": ["own.Model", "own.Model"]}
        (folder / file).write_text(json.dumps(values))
    assert load_bert(folder).hidden_size == 32
    assert not proof.exists()


# --- folders that are no model


def indexed(folder: Path, index: Any) -> None:
    """Replace the weights by an index."""
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["../outside.safetensors", "{parent}/outside.safetensors"])
def test_an_index_that_points_out_of_its_folder_is_refused(folder: Path, name: str) -> None:
    indexed(folder, {"weight_map": {"a": name.format(parent=folder.parent)}})
    with pytest.raises(UnsafeModelError, match="outside of the folder"):
        load_bert(folder)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"a": 3}}, [1]])
def test_a_broken_index_is_named(folder: Path, index: Any) -> None:
    indexed(folder, index)
    with pytest.raises(ModelError, match=r"model\.safetensors\.index\.json"):
        load_bert(folder)


def test_weights_in_shards_are_joined(folder: Path) -> None:
    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: whole[name] for name in part}, folder / file)
    indexed(folder, {"weight_map": {n: file for file, part in halves.items() for n in part}})
    assert sorted(read_weights(folder)) == names
    before, after = states_of(tiny_ptm(), TEXTS), states_of(load_bert(folder), TEXTS)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    (folder / "b.safetensors").unlink()
    assert "b.safetensors" in raised_by(lambda: load_bert(folder))


def without(folder: Path, *starts: str) -> None:
    """Take the weights away whose names start so."""
    file = folder / "model.safetensors"
    kept = {n: t for n, t in load_file(file).items() if not n.startswith(starts)}
    save_file(kept, file, metadata={"format": "pt"})


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:1000])


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json found"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "expected a JSON object"),
    "other architecture": (lambda f: reconfigured(f, model_type="brt"), "did you mean 'bert'?"),
    "no architecture": (lambda f: reconfigured(f, model_type=None), "allowed: bert, roberta"),
    "other width": (lambda f: reconfigured(f, intermediate_size=48), r"shape \[64.*says \[48"),
    "more layers": (lambda f: reconfigured(f, num_hidden_layers=3), "weights missing: .*layer.2"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights found"),
    "cut weights": (lambda f: cut_short(f / "model.safetensors"), "not a readable safetensors"),
    "no encoder": (lambda f: without(f, "bert.encoder"), "weights missing: bert.encoder"),
    "no head": (
        lambda f: without(f, "cls."),
        "lacks a whole masked-LM head, one can be fitted first",
    ),
    "no tokenizer": (no_tokenizer, "no tokenizer"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_folder_that_is_no_model_says_why(folder: Path, damage: str) -> None:
    break_it, said = DAMAGE[damage]
    break_it(folder)
    with pytest.raises(UserError, match=said) as caught:
        load_bert(folder)
    assert str(folder) in str(caught.value)


def test_a_missing_head_is_drawn_the_same_each_time_where_allowed(folder: Path) -> None:
    without(folder, "cls.")
    heads = [load_bert(folder, allow_headless=True).module.cls.state_dict() for _ in range(2)]
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in heads[0])


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ModelError, match=r"model folder \./nowhere does not exist"):
        MODELS.parse({"name": "bert", "source": "./nowhere"}).load()


def test_an_unknown_weight_group_lists_the_groups() -> None:
    with pytest.raises(ModelError, match=r"'ffn_inn' \(did you mean 'ffn_in'\?\).*query"):
        tiny_ptm().weight_group("ffn_inn")
