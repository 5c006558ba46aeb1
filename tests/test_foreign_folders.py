"""Folders that are no model here: each is called what it is; adapters are not left out unsaid."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clip_samples import tiny
from image_samples import tiny_timm, tiny_vgg, tiny_vit
from samples import raised_by, tiny_folder
from vit_samples import in_transformers

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.models.contents import check_folder_given, check_readable
from recipe_ray.models.family import MODELS
from recipe_ray.models.text.checkpoint import load_bert

KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "clip": ({"config.json": {"model_type": "clip"}}, "open_clip's layout"),
    "siglip": ({"config.json": {"model_type": "siglip"}}, "open_clip's layout"),
    "deit": (
        {"config.json": {"model_type": "deit"}},
        "give a vision transformer with model_type 'vit'",
    ),
    "timm": (
        {"config.json": {"architecture": ["vit_tiny"]}},
        "architecture is ['vit_tiny']; expected the name that timm has for it",
    ),
    "timm in transformers": (
        {"config.json": {"model_type": "timm_wrapper", "architecture": "resnet18"}},
        "or a network in timm's layout",
    ),
    "gpt2": ({"config.json": {"model_type": "gpt2"}}, "it writes text"),
    "adapter": ({"adapter_config.json": {"base_model_name_or_path": "x/y"}}, "not a whole model"),
    "diffusers": ({"model_index.json": {}}, "a pipeline of diffusers"),
    "empty": ({}, "the folder is empty"),
    "tokenizer": ({"vocab.txt": {}}, "it has a tokenizer only"),
    "flax": ({"config.json": {"model_type": "x"}, "flax_model.msgpack": {}}, "unknown model_type"),
    "t5": ({"config.json": {"model_type": "t5"}}, "it writes text"),
    "llama": ({"config.json": {"model_type": "llama"}}, "it writes text"),
    "distilbert": ({"config.json": {"model_type": "distilbert"}}, "similar to BERT"),
    "tensorflow": ({"tf_model.h5": {}}, "its weights are of TensorFlow only"),
    "tensorflow 1": ({"bert_model.ckpt.index": {}}, "its weights are of TensorFlow only"),
    "flax alone": ({"flax_model.msgpack": {}}, "its weights are of Flax only"),
    "onnx": ({"model.onnx": {}}, "its weights are of ONNX only"),
    "the hub's cache": (
        {"refs/main": {}, "snapshots/0123/config.json": {"model_type": "bert"}},
        "snapshots/0123",
    ),
    "no config": ({"model.safetensors": {}}, "no config.json found next to the weights"),
    "gguf": ({"a.gguf": {}}, "its weights are of GGUF only"),
    "inside": ({"0_Transformer/config.json": {"model_type": "bert"}}, "0_Transformer"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_another_kind_is_called_that(tmp_path: Path, kind: str) -> None:
    files, said = KINDS[kind]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    assert said in raised_by(lambda: check_readable(tmp_path))


def test_an_adapter_beside_weights_is_refused_unless_told(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "model"))
    (folder / "adapter_config.json").write_text("{}")
    assert "--ignore-adapter" in raised_by(lambda: load_bert(folder))
    load_bert(folder, ignore_adapter=True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "a file; give the folder that has it"),
        ("model.gguf", "a GGUF file"),
        ("model.onnx", "a ONNX file"),
        ("config.json", "a file; give the folder that has it"),
    ],
)
def test_a_single_file_is_no_folder_of_a_model(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    message = raised_by(lambda: check_folder_given(tmp_path / name))
    assert said in message
    assert str(tmp_path / name) in message


STARTS = {
    "a web page": b"<!DOCTYPE html><html><head><title>Sign in</title>",
    "an archive (ZIP)": b"PK\x03\x04" + b"\0" * 60,
    "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 60,
    "GGUF": b"GGUF\x03\0\0\0" + b"\0" * 60,
    "gzip": b"\x1f\x8b\x08\0" + b"\0" * 60,
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kind", STARTS)
def test_another_file_in_the_place_of_one_is_called_what_it_is(
    tmp_path: Path, kind: str, name: str
) -> None:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "model"))
    (folder / name).write_bytes(STARTS[kind])
    message = raised_by(lambda: load_bert(folder))
    assert kind in message
    assert str(folder / name) in message
    assert "header" not in message


class Harm:
    """A pickle of it would run a command."""

    def __reduce__(self) -> Any:
        return print, ("harm",)


@pytest.mark.parametrize("allowed", [True, False])
def test_no_refusal_of_a_pickle_says_how_to_get_round_it(tmp_path: Path, allowed: bool) -> None:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Harm()}))
    message = raised_by(lambda: load_bert(folder, allow_pickle=allowed))
    assert "safetensors" in message
    for advice in ("weights_only=False", "add_safe_globals", "safe_globals", "trust"):
        assert advice not in message


def _bert(folder: Path) -> dict[str, Any]:
    shutil.copytree(tiny_folder(), folder)
    return {"name": "bert", "source": str(folder)}


def _vit(folder: Path) -> dict[str, Any]:
    in_transformers(tiny_vit().module, folder)
    return {"name": "vit", "source": str(folder)}


def _own_vit(folder: Path) -> dict[str, Any]:
    tiny_vit().save(folder)
    return {"name": "vit", "source": str(folder)}


def _vgg(folder: Path) -> dict[str, Any]:
    tiny_vgg().save(folder)
    return {"name": "vgg", "source": str(folder)}


def _clip(folder: Path) -> dict[str, Any]:
    tiny().save(folder)
    return {"name": "clip", "source": str(folder)}


def _timm(folder: Path) -> dict[str, Any]:
    MODELS.parse(tiny_timm("test_efficientnet")).load().save(folder)
    return {"name": "timm", "source": str(folder)}


@pytest.mark.parametrize("adapter", ["adapter_config.json", "adapter_model.bin"])
@pytest.mark.parametrize("make", [_bert, _vit, _own_vit, _vgg, _clip, _timm])
def test_every_family_refuses_an_adapter_and_tells_of_one_left_out(
    tmp_path: Path, make: Callable[[Path], dict[str, Any]], adapter: str
) -> None:
    fields = make(tmp_path / "model")
    assert MODELS.parse(fields).left_out() == []
    (tmp_path / "model" / adapter).write_text("{}")
    for use in ("load", "content"):
        said = raised_by(lambda what=use: getattr(MODELS.parse(fields), what)())
        assert "--ignore-adapter" in said
    told = MODELS.parse({**fields, "ignore_adapter": True})
    told.load()
    told.content()
    (note,) = told.left_out()
    assert f"an adapter ({adapter})" in note


def test_a_released_backdoor_has_no_adapter_unless_told(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "model"))
    (folder / "adapter_config.json").write_text("{}")
    fields = {"name": "released", "source": str(folder), "triggers": ["cf"]}
    assert "--ignore-adapter" in raised_by(lambda: ATTACKS.parse(fields).identity())
    ATTACKS.parse({**fields, "ignore_adapter": True}).identity()


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_no_file_of_a_model_is_a_link_out_or_a_pipe(tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "model"))
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    assert "a link out of its folder" in raised_by(lambda: load_bert(folder))
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "a named pipe" in raised_by(lambda: load_bert(folder))
