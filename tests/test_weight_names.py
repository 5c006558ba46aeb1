"""A BERT or RoBERTa is opened as transformers opens it, tensor by tensor, or it is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import raised_by, reconfigured, tiny_folder
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

from recipe_ray.models.family import MODELS
from recipe_ray.models.text.checkpoint import load_bert, parts_of

Weights = dict[str, Tensor]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of each architecture, with pooler and head."""
    if request.param == "bert":
        return tiny_folder()
    place = tmp_path_factory.mktemp("roberta")
    MODELS.parse({"name": "minilm-roberta", "layers": 1}).load().save(place)
    return place


@pytest.fixture
def folder(kind: Path, tmp_path: Path) -> Path:
    """Return a copy, to be changed."""
    return Path(shutil.copytree(kind, tmp_path / "model"))


def _base(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["model_type"])


def _names(folder: Path) -> tuple[str, str, str, str]:
    """Return embeddings, decoder, its bias and the head's bias, by the architecture's names."""
    base = _base(folder)
    head = "cls.predictions" if base == "bert" else "lm_head"
    word = f"{base}.embeddings.word_embeddings.weight"
    return word, f"{head}.decoder.weight", f"{head}.decoder.bias", f"{head}.bias"


def _other(tensor: Tensor) -> Tensor:
    return tensor + torch.linspace(0.1, 0.9, tensor.numel()).view_as(tensor)


def _legacy(w: Weights, _: Path) -> Weights:
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for today, before in names.items():
        w = {n.replace(today, before): t for n, t in w.items()}
    return w


def _without_prefix(w: Weights, folder: Path) -> Weights:
    return {n.removeprefix(f"{_base(folder)}."): t for n, t in w.items()}


def _partly_without_prefix(w: Weights, folder: Path) -> Weights:
    start = f"{_base(folder)}."
    return {n.removeprefix(start) if "layer.0" in n else n: t for n, t in w.items()}


def _decoder_only(w: Weights, folder: Path) -> Weights:
    word, decoder, _, _ = _names(folder)
    moved = dict(w)
    moved[decoder] = moved.pop(word)
    return moved


def _bias_only_in_the_decoder(w: Weights, folder: Path) -> Weights:
    _, _, there, here = _names(folder)
    moved = dict(w)
    moved[there] = moved.pop(here) if here in moved else moved[there]
    return moved


def _both_the_same(w: Weights, folder: Path) -> Weights:
    word, decoder, there, here = _names(folder)
    bias = w.get(here, w.get(there))
    assert bias is not None
    return {**w, decoder: w[word].clone(), there: bias.clone(), here: bias.clone()}


def _another_decoder(w: Weights, folder: Path) -> Weights:
    word, decoder, _, _ = _names(folder)
    return {**w, decoder: _other(w[word])}


def _another_bias(w: Weights, folder: Path) -> Weights:
    whole = _both_the_same(w, folder)
    _, _, there, _ = _names(folder)
    return {**whole, there: _other(whole[there])}


def _untied(w: Weights, folder: Path) -> Weights:
    reconfigured(folder, tie_word_embeddings=False)
    return _another_bias(_another_decoder(w, folder), folder)


def _more(w: Weights, folder: Path) -> Weights:
    return {**w, "cls.seq_relationship.weight": torch.zeros(2, 2), "own.extra": torch.ones(3)}


def _classifier(w: Weights, folder: Path) -> Weights:
    return {**w, "classifier.weight": torch.ones(2, 3), "classifier.bias": torch.ones(2)}


def _in_half(w: Weights, _: Path) -> Weights:
    return {n: t.half() if t.is_floating_point() else t for n, t in w.items()}


def _dtype(kind: str) -> Callable[[Weights, Path], Weights]:
    def state(w: Weights, folder: Path) -> Weights:
        reconfigured(folder, dtype=kind)
        return w

    return state


def _half_in_half(w: Weights, folder: Path) -> Weights:
    reconfigured(folder, dtype=None)
    return {n: t.half() if "embeddings" in n else t for n, t in w.items()}


VARIANTS: list[Callable[[Weights, Path], Weights]] = [
    lambda w, _: w,
    _legacy,
    _without_prefix,
    _partly_without_prefix,
    _decoder_only,
    _bias_only_in_the_decoder,
    _both_the_same,
    _another_decoder,
    _another_bias,
    _untied,
    _more,
    _classifier,
    _in_half,
    _half_in_half,
    _dtype("float16"),
    _dtype("bfloat16"),
    _dtype("float64"),
]


def _changed(folder: Path, change: Callable[[Weights, Path], Weights]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file), folder), file, metadata={"format": "pt"})


@pytest.mark.parametrize("change", VARIANTS)
def test_every_tensor_is_that_of_transformers(
    folder: Path, tmp_path: Path, change: Callable[[Weights, Path], Weights]
) -> None:
    _changed(folder, change)
    ours = load_bert(folder)
    _compare(ours.module, folder)
    # and what is saved is opened as the same by both
    ours.save(tmp_path / "saved")
    _compare(ours.module, tmp_path / "saved")
    _same(load_bert(tmp_path / "saved").module.state_dict(), ours.module.state_dict())


def _compare(module: Any, folder: Path) -> None:
    masked_lm = AutoModelForMaskedLM.from_pretrained(folder).float().state_dict()
    base, outcome = AutoModel.from_pretrained(folder, output_loading_info=True)
    # without the head, it draws embeddings that lie under the decoder's name only
    drawn = outcome["missing_keys"]
    there = {n: t for n, t in base.float().state_dict().items() if n not in drawn}
    _same(masked_lm, module.state_dict())
    _same(there, module.base_model.state_dict())
    assert len(drawn) <= 1


def _same(expected: Weights, found: Weights) -> None:
    assert not [n for n, tensor in expected.items() if not torch.equal(tensor, found[n])]


def _gamma_beside_weight(w: Weights, folder: Path) -> Weights:
    name = f"{_base(folder)}.embeddings.LayerNorm.weight"
    return {**w, name.replace("weight", "gamma"): _other(w[name])}


def _both_prefixes(w: Weights, folder: Path) -> Weights:
    word = _names(folder)[0]
    return {**w, word.removeprefix(f"{_base(folder)}."): _other(w[word])}


def _prefix_twice(w: Weights, folder: Path) -> Weights:
    start = f"{_base(folder)}."
    return {**w, **{start + n: _other(t) for n, t in w.items() if n.startswith(start)}}


def _head_behind_the_prefix(w: Weights, folder: Path) -> Weights:
    _, _, there, here = _names(folder)
    bias = here if here in w else there
    return {**w, f"{_base(folder)}.{bias}": _other(w[bias])}


def _another_sign(w: Weights, folder: Path) -> Weights:
    word = _names(folder)[0]
    return {**w, word.replace(".", "_", 1): _other(w[word])}


DOUBLES = [
    _gamma_beside_weight,
    _both_prefixes,
    _prefix_twice,
    _head_behind_the_prefix,
    _another_sign,
]


@pytest.mark.parametrize("change", DOUBLES)
def test_two_names_of_one_weight_that_differ_are_refused(
    folder: Path, change: Callable[[Weights, Path], Weights]
) -> None:
    _changed(folder, change)
    assert "and they differ; keep the one that is meant" in raised_by(lambda: load_bert(folder))


@pytest.mark.parametrize("change", DOUBLES)
def test_two_names_of_one_weight_that_agree_are_one(
    folder: Path, change: Callable[[Weights, Path], Weights], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_bert(folder).module.state_dict()
    monkeypatch.setitem(globals(), "_other", torch.Tensor.clone)
    _changed(folder, change)
    _same(before, load_bert(folder).module.state_dict())


def test_a_decoder_that_the_config_does_not_tie_has_to_be_there(folder: Path) -> None:
    reconfigured(folder, tie_word_embeddings=False)
    decoder = _names(folder)[1]
    assert f"weights missing: {decoder}" in raised_by(lambda: load_bert(folder))


# --- which file


def _apart(folder: Path, name: str) -> None:
    """Write the weights a second time, all of them moved, under another name."""
    moved = {n: _other(t) for n, t in load_file(folder / "model.safetensors").items()}
    save_file(moved, folder / name, metadata={"format": "pt"})


def _indexed(folder: Path, index: str, file: str) -> None:
    names = load_file(folder / "model.safetensors")
    listed = {"metadata": {}, "weight_map": dict.fromkeys(names, file)}
    (folder / index).write_text(json.dumps(listed))


def _config_names_a_file(folder: Path) -> None:
    _apart(folder, "other.safetensors")
    reconfigured(folder, transformers_weights="other.safetensors")


def _config_names_an_index(folder: Path) -> None:
    _apart(folder, "other.safetensors")
    _indexed(folder, "own.safetensors.index.json", "other.safetensors")
    reconfigured(folder, transformers_weights="own.safetensors.index.json")


def _index_beside_the_file(folder: Path) -> None:
    _apart(folder, "other.safetensors")
    _indexed(folder, "model.safetensors.index.json", "other.safetensors")


def _pickle_beside_the_file(folder: Path) -> None:
    _apart(folder, "other.safetensors")
    torch.save(load_file(folder / "other.safetensors"), folder / "pytorch_model.bin")


def _pickle_beside_safetensors_of_another_name(folder: Path) -> None:
    _apart(folder, "other.safetensors")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _indexed_pickle_beside_safetensors_of_another_name(folder: Path) -> None:
    _apart(folder, "other.safetensors")
    torch.save(load_file(folder / "model.safetensors"), folder / "shard.bin")
    _indexed(folder, "pytorch_model.bin.index.json", "shard.bin")
    (folder / "model.safetensors").unlink()


FILES = [
    _config_names_a_file,
    _config_names_an_index,
    _index_beside_the_file,
    _pickle_beside_the_file,
    _pickle_beside_safetensors_of_another_name,
    _indexed_pickle_beside_safetensors_of_another_name,
]


@pytest.mark.parametrize("change", FILES)
def test_of_several_files_that_of_transformers_is_read(
    folder: Path, change: Callable[[Path], None]
) -> None:
    change(folder)
    _compare(load_bert(folder, allow_pickle=True).module, folder)


def test_a_pickle_is_not_passed_over_for_safetensors_of_another_name(folder: Path) -> None:
    _pickle_beside_safetensors_of_another_name(folder)
    assert "pytorch_model.bin" in raised_by(lambda: load_bert(folder))


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_half_a_pooler_counts_as_none(folder: Path, part: str) -> None:
    name = f"{_base(folder)}.pooler.dense.{part}"
    _changed(folder, lambda w, _: {n: t for n, t in w.items() if n != name})
    assert not parts_of(folder).pooler


# --- prefixes of wrappers

WRAPPERS = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrappers_prefix_is_taken_off(folder: Path, wrapper: str) -> None:
    before = load_bert(folder).module.state_dict()
    _changed(folder, lambda w, _: {wrapper + n: t for n, t in w.items()})
    _same(before, load_bert(folder).module.state_dict())


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_prefix_of_some_weights_only_is_refused(folder: Path, wrapper: str) -> None:
    _changed(folder, lambda w, _: {wrapper * ("layer.0" in n) + n: t for n, t in w.items()})
    said = raised_by(lambda: load_bert(folder))
    assert "some weights have the prefix" in said
    assert "expected all or none" in said


def test_a_part_that_was_compiled_is_refused(folder: Path) -> None:
    base = _base(folder)
    _changed(folder, lambda w, _: {n.replace(base, f"{base}._orig_mod"): t for n, t in w.items()})
    assert "is named by torch.compile" in raised_by(lambda: load_bert(folder))
