"""Files that somebody crafted: what cannot be read is refused by its name, never by a traceback."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import raised_by, states_of, tiny_folder, tiny_ptm

from recipe_ray.base.errors import ModelError, UnsafeModelError
from recipe_ray.base.loading import read_json, read_weight_file, read_weights
from recipe_ray.models.text.checkpoint import load_bert

TEXTS = ["Call me Ishmael."]


# --- JSON

BROKEN = {
    "nested": '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    "many digits": '{"a": ' + "9" * 5_000 + "}",
    "not a number": '{"a": [NaN]}',
    "infinite": '{"a": -Infinity}',
    "infinite as a float": '{"a": 1e999}',
    "no text": b"\xff\xfe{}",
}


@pytest.mark.parametrize("broken", BROKEN)
def test_json_that_python_chokes_on_is_refused_by_its_name(tmp_path: Path, broken: str) -> None:
    file, content = tmp_path / "config.json", BROKEN[broken]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError, match=r"config\.json: not valid JSON: "):
        read_json(file)


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelError, match=r"config\.json: cannot be read"):
        read_json(tmp_path / "config.json")


# --- shards


def in_the_hubs_cache(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Lay the tiny model out as the hub's client does, in two shards; return the snapshot."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    whole = load_file(tiny_folder() / "model.safetensors")
    names = sorted(whole)
    halves = {f"model-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
    for file, part in halves.items():
        save_file({name: whole[name] for name in part}, blobs / f"blob-of-{file}")
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (blobs / "blob-of-model.safetensors.index.json").write_text(json.dumps(index))
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (blobs / f"blob-of-{file}").write_bytes((tiny_folder() / file).read_bytes())
    for blob in blobs.iterdir():
        (snapshot / blob.name.removeprefix("blob-of-")).symlink_to(f"../../blobs/{blob.name}")
    return snapshot, index


def test_shards_in_the_hubs_cache_are_read_though_they_are_links_out_of_it(tmp_path: Path) -> None:
    snapshot, _ = in_the_hubs_cache(tmp_path)
    before, after = states_of(tiny_ptm(), TEXTS), states_of(load_bert(snapshot), TEXTS)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["", ".", "..", "a\0b", "a/../b", "..\\b", "/etc/passwd", "./a"])
def test_an_index_may_name_nothing_but_plain_files(tmp_path: Path, name: str) -> None:
    snapshot, index = in_the_hubs_cache(tmp_path)
    file = snapshot / "model.safetensors.index.json"
    index["weight_map"]["bert.pooler.dense.bias"] = name
    file.unlink()
    file.write_text(json.dumps(index))
    with pytest.raises(UnsafeModelError, match="outside of the folder; allowed: plain names"):
        read_weights(snapshot)


# --- weights

CRAFTED = {
    "key": b"\x80\x02h\x05.",
    "index": b"\x80\x02s.",
    "text": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "list": b"\x80\x02]a.",
    "far": b"\x80\x02j\xff\xff\xff\xff.",
}


@pytest.mark.parametrize("crafted", CRAFTED)
def test_a_pickle_that_the_unpickler_stumbles_over_is_refused(tmp_path: Path, crafted: str) -> None:
    file = tmp_path / "pytorch_model.bin"
    file.write_bytes(CRAFTED[crafted])
    with pytest.raises(UnsafeModelError, match=r"pytorch_model\.bin: refused by the weights_only"):
        read_weight_file(file, allow_pickle=True)


HELD_BY_NOTHING: dict[str, Callable[[], Any]] = {
    "a key that is no name": lambda: {1: torch.ones(2)},
    "no tensor": lambda: {"a": [1.0]},
    "one number repeated": lambda: {"a": torch.zeros(1).expand(10**9, 10**4)},
    "no storage": lambda: {"a": torch.empty(10**9, 10**4, device="meta")},
    "sparse": lambda: {"a": torch.sparse_coo_tensor([[0], [0]], [1.0], (10**9, 10**4))},
}


@pytest.mark.parametrize("kind", HELD_BY_NOTHING)
def test_a_pickle_holds_named_tensors_of_no_more_than_lies_in_it(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(HELD_BY_NOTHING[kind](), file)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin: expected a state dict of tensors"):
        read_weight_file(file, allow_pickle=True)


def test_buffers_that_are_views_and_parameters_are_read_from_a_pickle(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    state = {"ids": torch.arange(5).expand((1, -1)), "w": torch.nn.Parameter(torch.ones(2))}
    torch.save({"state_dict": state}, file)
    assert [list(t.shape) for t in read_weight_file(file, allow_pickle=True).values()] == [
        [1, 5],
        [2],
    ]


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn])
def test_weights_that_are_no_plain_floats_are_refused_by_name(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = copied(tmp_path)
    whole = load_file(folder / "model.safetensors")
    name = "bert.embeddings.position_embeddings.weight"
    save_file({**whole, name: whole[name].to(dtype)}, folder / "model.safetensors")
    said = raised_by(lambda: load_bert(folder))
    assert f"{name} is of {dtype}; allowed: torch.float32" in said


def test_four_bits_a_number_are_refused_by_name(tmp_path: Path) -> None:
    folder = copied(tmp_path)
    name = "bert.pooler.dense.bias"
    header = {name: {"dtype": "F4", "shape": [64], "data_offsets": [0, 32]}}
    text = json.dumps(header).encode()
    quantized = struct.pack("<Q", len(text)) + text + bytes(32)
    whole = load_file(folder / "model.safetensors")
    whole.pop(name)
    save_file(whole, folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes(quantized)
    places = {**dict.fromkeys(whole, "a.safetensors"), name: "b.safetensors"}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert f"{name} is of torch.float4" in raised_by(lambda: load_bert(folder))


def copied(folder: Path) -> Path:
    """Return a copy of the tiny model's folder, to be damaged."""
    target = folder / "model"
    target.mkdir()
    for file in tiny_folder().iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target
