"""Hostile models: weights, configs, shards, links, pickles, adapters."""

import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from hostile.case import EITHER, FAILED, Case, cases
from hostile.good import changed_json

EVALUATE = "evaluate model --task own.csv --set steps=1 --set precision=fp32 --quiet"
PURIFY = "purify model --aux texts.txt --out out --no-scan --set fit.steps=1 --quiet"
IMAGES = "purify vgg --aux images --out out --no-scan --set fit.steps=1 --quiet"
WEIGHTS, CONFIG = Path("model/model.safetensors"), "model/config.json"
ESCAPES = "\x1b[2J\x1b]0;title\x07\u202e\r"
Make = Callable[[], Any]


def header(change: Callable[[dict[str, Any]], Any]) -> Make:
    """Return a maker that changes the header of the weights; the change may return bytes."""

    def make() -> None:
        data = WEIGHTS.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        found = json.loads(data[8 : 8 + size])
        changed = change(found)
        text = changed if isinstance(changed, bytes) else json.dumps(found).encode()
        WEIGHTS.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return make


def first(header: dict[str, Any]) -> dict[str, Any]:
    """Return what a header says of the first tensor."""
    name = next(name for name in header if name != "__metadata__")
    found: dict[str, Any] = header[name]
    return found


def says(**fields: Any) -> Make:
    return header(lambda found: first(found).update(fields))


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Make:
    """Return a maker that changes the tensors."""

    def make() -> None:
        tensors = load_file(WEIGHTS)
        change(tensors)
        save_file(tensors, WEIGHTS, metadata={"format": "pt"})

    return make


def every(change: Callable[[torch.Tensor], torch.Tensor]) -> Make:
    def change_all(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {name: change(one).contiguous() for name, one in tensors.items()}

    return weights(change_all)


def filled(part: str, value: float) -> Make:
    """Return a maker that sets all numbers of the tensors whose name holds `part`."""
    return weights(lambda t: [one.fill_(value) for name, one in t.items() if part in name])


def raw(data: bytes, file: Path = WEIGHTS) -> Make:
    return lambda: file.write_bytes(data)


def cut(file: Path, keep: float) -> Make:
    return lambda: file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])


def many_tensors(found: dict[str, Any]) -> None:
    found |= {f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(10**5)}


def renamed(name: str) -> Make:
    def change(found: dict[str, Any]) -> None:
        found[name] = found.pop("bert.embeddings.LayerNorm.bias")

    return header(change)


def twice(found: dict[str, Any]) -> bytes:
    text = json.dumps(found)
    return (text[:-1] + "," + text[1:]).encode()


SAFETENSORS: dict[str, Any] = {
    "no bytes": raw(b""),
    "zeros": raw(b"\0" * 1000),
    "a header of 2**63 bytes": raw(struct.pack("<Q", 2**63) + b"{}"),
    "a header beyond the file": raw(struct.pack("<Q", 10**6) + b"{}"),
    "a header that is no JSON": header(lambda found: b"{bert"),
    "a header that is no UTF-8": header(lambda found: b'{"\xff\xfe": 1}'),
    "a header 100,000 deep": header(lambda found: b"[" * 10**5),
    "a header that is a list": header(lambda found: b"[]"),
    "an empty header": header(lambda found: b"{}"),
    "all names twice": header(twice),
    "100,000 tensors more": header(many_tensors),
    "metadata that is no text": header(lambda found: found.update(__metadata__={"a": [1]})),
    "a name of a megabyte": renamed("x" * 10**6),
    "a name with escapes": renamed(ESCAPES),
    "a name that is a path": renamed("../../secret"),
    "offsets below zero": says(data_offsets=[-4, 60]),
    "offsets beyond the file": says(data_offsets=[0, 2**40]),
    "offsets that overlap": says(data_offsets=[64, 128]),
    "offsets that are text": says(data_offsets=["0", "64"]),
    "a shape beyond 64 bits": says(shape=[2**40, 2**40]),
    "a shape below zero": says(shape=[-1, -16]),
    "a shape of fractions": says(shape=[1.5]),
    "an unknown dtype": says(dtype="F9"),
    "whole numbers": says(dtype="I32"),
    "bytes behind the end": lambda: WEIGHTS.write_bytes(WEIGHTS.read_bytes() + b"x" * 100),
    "cut off": cut(WEIGHTS, 0.5),
    "nan in embeddings": filled("word_embeddings", float("nan")),
    "nan in a position that no text reaches": weights(
        lambda t: t["bert.embeddings.position_embeddings.weight"][-1].fill_(float("nan"))
    ),
    "infinite in a layer": filled("layer.1.output.dense.weight", float("inf")),
    "of 1e38": filled("dense.weight", 1e38),
    "all zero": (filled("", 0.0), EITHER),
    "transposed": every(lambda one: one.T if one.dim() == 2 else one),
    "of eight bits": every(lambda one: one.to(torch.float8_e4m3fn)),
    "truth values": every(lambda one: one.bool()),
    "complex": every(lambda one: one.to(torch.complex64)),
    "empty": every(lambda one: one[:0]),
    "of four dimensions": every(lambda one: one[None, None]),
}

HOSTILE_VALUES: dict[str, dict[str, Any]] = {
    "1e9 wide": {"hidden_size": 10**9},
    "a million layers": {"num_hidden_layers": 10**6},
    "no layers": {"num_hidden_layers": 0},
    "less than no layers": {"num_hidden_layers": -1},
    "layers as text": {"num_hidden_layers": "2"},
    "layers as truth": {"num_hidden_layers": True},
    "layers as a list": {"num_hidden_layers": [2]},
    "1e9 words": {"vocab_size": 10**9},
    "no heads": {"num_attention_heads": 0},
    "heads that do not divide": {"num_attention_heads": 3},
    "more heads than numbers": {"num_attention_heads": 10**9},
    "2**40 inside": {"intermediate_size": 2**40},
    "no positions": {"max_position_embeddings": 0},
    "positions beyond 64 bits": {"max_position_embeddings": 2**70},
    "no types": {"type_vocab_size": 0},
    "a filler below zero": {"pad_token_id": -5},
    "a filler beyond the words": {"pad_token_id": 10**9},
    "an epsilon that is nan": {"layer_norm_eps": float("nan")},
    "an epsilon below zero": {"layer_norm_eps": -1.0},
    "a function from a module": {"hidden_act": "os.system"},
    "a function that is a list": {"hidden_act": ["gelu"]},
    "a type with escapes": {"model_type": ESCAPES},
    "a type that is a list": {"model_type": ["bert"]},
    "a type that is a path": {"model_type": "../../secret"},
    "weights elsewhere": {"transformers_weights": "../../secret"},
    "weights in a device": {"transformers_weights": "/dev/zero"},
    "a quantisation": {"quantization_config": {"quant_method": "bitsandbytes"}},
    "a decoder": {"is_decoder": True, "add_cross_attention": True},
}
CHANGES: dict[str, Any] = {
    name: partial(changed_json, CONFIG, **fields) for name, fields in HOSTILE_VALUES.items()
}
for harmless in (
    {"architectures": [1, 2]},
    {"torch_dtype": "os.system", "dtype": "os.system"},
    {"chunk_size_feed_forward": -7},
    {"auto_map": {"AutoModel": "evil.Evil"}},
    {"attention_probs_dropout_prob": 1.0, "hidden_dropout_prob": 1.0},
    {"hidden_dropout_prob": -3},
    {"_attn_implementation": "os.system"},
    {"_name_or_path": f"../../secret{ESCAPES}"},
    {"initializer_range": 1e308},
    {"id2label": {str(n): "x" for n in range(10**5)}},
    {"trust_remote_code": True, "custom_pipelines": {"x": {"impl": "evil.Evil"}}},
    {"problem_type": ["x"], "return_dict": "no", "output_attentions": True},
    {"tie_word_embeddings": "maybe"},
):
    CHANGES[f"with {next(iter(harmless))}"] = (partial(changed_json, CONFIG, **harmless), EITHER)

CONFIGS: dict[str, Any] = CHANGES | {
    name: raw(data, Path(CONFIG))
    for name, data in {
        "empty": b"",
        "a list": b"[]",
        "null": b"null",
        "100,000 deep": b'{"a":' * 10**5,
        "of 17 MB": b'{"model_type": "' + b"x" * 17 * 2**20 + b'"}',
        "in UTF-16": '{"model_type": "bert"}'.encode("utf-16"),
        "bytes": bytes(range(256)),
        "a number of 100,000 digits": b'{"hidden_size": ' + b"9" * 10**5 + b"}",
        "a web page": b"<!DOCTYPE html><html>" + ESCAPES.encode(),
        "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    }.items()
}


def shards(index: Any, **files: bytes) -> Make:
    """Return a maker that puts an index, and files, in the place of the weights."""

    def make() -> None:
        WEIGHTS.rename("model/one.safetensors")
        text = index if isinstance(index, bytes) else json.dumps(index).encode()
        Path("model/model.safetensors.index.json").write_bytes(text)
        for name, data in files.items():
            Path("model", name).write_bytes(data)

    return make


def mapped(name: Any) -> Make:
    return shards({"metadata": {}, "weight_map": {"bert.embeddings.LayerNorm.bias": name}})


SHARDS: dict[str, Any] = {
    "an index that is no JSON": shards(b"{"),
    "an index 100,000 deep": shards(b"[" * 10**5),
    "an index without a map": shards({"metadata": {"total_size": 1}}),
    "a map that is a list": shards({"weight_map": ["one.safetensors"]}),
    "an empty map": shards({"weight_map": {}}),
    "names that are numbers": mapped(7),
    "names outside": mapped("../../secret"),
    "absolute names": mapped("/etc/passwd"),
    "names of pickles": mapped("evil.bin"),
    "names with a zero": mapped("a\0b.safetensors"),
    "names with escapes": mapped(ESCAPES),
    "names of 10,000 letters": mapped("x" * 10**4),
    "the index itself": mapped("model.safetensors.index.json"),
    "100,000 missing files": shards({"weight_map": {f"w{n}": f"{n}.safetensors"
                                                    for n in range(10**5)}}),
    "a part of the weights only": (mapped("one.safetensors"), EITHER),
}  # fmt: skip


def instead(file: str, make: Callable[[Path], Any]) -> Make:
    """Return a maker of something else in the place of a file."""

    def put() -> None:
        Path(file).unlink()
        make(Path(file))

    return put


def link(target: str) -> Callable[[Path], Any]:
    return lambda path: path.symlink_to(target)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


FILES: dict[str, Callable[[Path], Any]] = {
    "a named pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to a file outside": link("../../secret"),
    "a link to a device": link("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a broken link": link("nowhere"),
    "a file of a terabyte": sparse,
}
PLACES = {"weights": WEIGHTS.name, "config": "config.json", "tokenizer": "tokenizer.json"}
LINKS: dict[str, Any] = {
    f"{what} for the {place}": instead(f"model/{name}", make)
    for what, make in FILES.items()
    for place, name in PLACES.items()
}


class Evil:
    """Would write a file if a pickle of it were read."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ../executed",)


def pickled(data: Callable[[], bytes]) -> Make:
    def make() -> None:
        WEIGHTS.unlink()
        Path("model/pytorch_model.bin").write_bytes(data())

    return make


def saved(value: Any) -> Callable[[], bytes]:
    def data() -> bytes:
        torch.save(value, "saved")
        found = Path("saved").read_bytes()
        Path("saved").unlink()
        return found

    return data


def packed() -> bytes:
    """Return an archive of torch that unpacks to ten thousand times its size."""
    with zipfile.ZipFile("saved", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", b"\0" * 10**8)
    found = Path("saved").read_bytes()
    Path("saved").unlink()
    return found


PICKLES: dict[str, Any] = {
    "code": pickled(lambda: pickle.dumps(Evil())),
    "code in an archive": pickled(saved({"bert.x": Evil()})),
    "an archive that unpacks to much": pickled(packed),
    "no tensors": pickled(saved({"a": 1})),
    "a list": pickled(saved([torch.zeros(2)])),
    "names that are numbers": pickled(saved({1: torch.zeros(2)})),
    "a number repeated 1e12 times": pickled(saved({"a": torch.zeros(1).expand(10**12)})),
    "no pickle": pickled(lambda: b"\x80\x02" + bytes(range(256))),
    "memo without end": pickled(lambda: b"\x80\x02" + b"(" * 10**6 + b"."),
    "an archive cut off": pickled(lambda: saved({"a": torch.zeros(99)})()[:500]),
}


def beside(**files: Any) -> Make:
    """Return a maker of further files in the model's folder."""

    def make() -> None:
        for name, content in files.items():
            Path("model", name.replace("__", ".")).write_text(content)

    return make


FOLDERS: dict[str, Any] = {
    "an adapter": beside(adapter_config__json="{}"),
    "an adapter that is no JSON": beside(adapter_config__json="[" * 10**5),
    "code": (beside(modeling_bert__py="raise SystemExit(9)", setup__py="x"), EITHER),
    "a module named as a library": (
        lambda: Path("torch.py").write_text("open('../executed', 'w')"),
        EITHER,
    ),
    "an empty folder": lambda: (shutil.rmtree("model"), Path("model").mkdir()),
    "a file": lambda: (shutil.rmtree("model"), Path("model").write_text("x")),
    "a pipe": lambda: (shutil.rmtree("model"), os.mkfifo("model")),
    "a folder of 10,000 files": (
        lambda: [Path("model", f"{n}.txt").touch() for n in range(10**4)],
        FAILED,
    ),
    "a GGUF file": lambda: (
        WEIGHTS.unlink(),
        Path("model/model.gguf").write_bytes(b"GGUF" + b"\xff" * 99),
    ),
}

VGGS: dict[str, Any] = {
    "nothing but a config": lambda: [
        one.unlink() for one in Path("vgg").iterdir() if one.suffix == ".safetensors"
    ],
    "a grid of 1e9": partial(changed_json, "vgg/config.json", grid=10**9),
    "channels of 1e9": partial(changed_json, "vgg/config.json", channels=[10**9]),
    "no channels": partial(changed_json, "vgg/config.json", channels=[]),
    "images of 1e9 pixels": partial(changed_json, "vgg/config.json", image_size=10**9),
    "classes as text": partial(changed_json, "vgg/config.json", num_classes="many"),
    "a deviation of zero": partial(changed_json, "vgg/config.json", std=[0, 0, 0]),
}


def images() -> None:
    from image_samples import image_bytes

    Path("images").mkdir()
    for number in range(24):
        Path("images", f"{number}.png").write_bytes(image_bytes(number))


def with_images(make: Make) -> Make:
    return lambda: (images(), make())


MODELS: list[Case] = [
    *cases("weights", EVALUATE, SAFETENSORS),
    *cases("config", EVALUATE, CONFIGS),
    *cases("shards", EVALUATE, SHARDS),
    *cases("files", PURIFY, LINKS),
    *cases("pickle", EVALUATE, PICKLES),
    *cases("pickle allowed", f"{EVALUATE} --allow-pickle", PICKLES),
    *cases("folder", PURIFY, FOLDERS),
    *cases("vgg", IMAGES, {name: with_images(make) for name, make in VGGS.items()}),
]
