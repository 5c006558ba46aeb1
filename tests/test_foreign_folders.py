"""Folders that are no model here: each is called what it is; adapters are not left out unsaid."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from samples import raised_by, tiny_folder

from recipe_ray.models.contents import check_readable
from recipe_ray.models.text.checkpoint import load_bert

KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "clip": ({"config.json": {"model_type": "clip"}}, "open_clip's layout"),
    "siglip": ({"config.json": {"model_type": "siglip"}}, "open_clip's layout"),
    "deit": ({"config.json": {"model_type": "deit"}}, "give one with model_type 'vit'"),
    "timm": ({"config.json": {"architecture": "vit_tiny"}}, "a model of timm"),
    "gpt2": ({"config.json": {"model_type": "gpt2"}}, "it writes text"),
    "adapter": ({"adapter_config.json": {"base_model_name_or_path": "x/y"}}, "no whole model"),
    "diffusers": ({"model_index.json": {}}, "a pipeline of diffusers"),
    "empty": ({}, "the folder is empty"),
    "tokenizer": ({"vocab.txt": {}}, "it has a tokenizer only"),
    "flax": ({"config.json": {"model_type": "x"}, "flax_model.msgpack": {}}, "unknown model_type"),
    "gguf": ({"a.gguf": {}}, "its weights are of GGUF only"),
    "inside": ({"0_Transformer/config.json": {"model_type": "bert"}}, "0_Transformer"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_another_kind_is_called_that(tmp_path: Path, kind: str) -> None:
    files, said = KINDS[kind]
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    assert said in raised_by(lambda: check_readable(tmp_path))


def test_an_adapter_beside_weights_is_refused_unless_told(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "model"))
    (folder / "adapter_config.json").write_text("{}")
    assert "--ignore-adapter" in raised_by(lambda: load_bert(folder))
    load_bert(folder, ignore_adapter=True)


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
