"""Reading weights that somebody uploaded: safetensors, or pickle behind a flag, never code.

Models are hostile by assumption. Every file is a regular one of its folder and of a stated size
(`foreign.py`). safetensors is data; a pickle is a program, so pickle formats are opened only if the
user allows it, and then with torch's `weights_only=True` unpickler.
"""

import json
import logging
import os
import struct
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recipe_ray.base.errors import ModelError, UnsafeModelError, in_a_line
from recipe_ray.base.foreign import (
    PICKLE_SUFFIXES,
    foreign_checksum,
    is_there,
    kind_by_start,
    open_foreign,
    read_foreign,
)
from recipe_ray.base.pickles import read_pickle

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# bytes; the largest models of the families that are read have 10 GB, the largest JSON file 3 MB
MAX_WEIGHTS = 64 * 2**30
MAX_JSON = 16 * 2**20
MAX_HEADER = 4 * 2**20  # bytes that name and describe a file's tensors: 100 or so for each
MAX_FILES = 1_000  # of a model's folder
# prefixes that DistributedDataParallel and torch.compile put before every name
_WRAPPERS = ("module.", "_orig_mod.")
# files next to weights that are not weights: optimiser states, arguments, additions to a base model
_NO_WEIGHTS = ("optimizer", "training_args", "scheduler", "rng_state", "scaler", "adapter_model")

_INDEX = ".index.json"  # after the name of the file that was cut into shards

ADAPTER = "adapter_config.json"
_ADAPTERS = (ADAPTER, "adapter_model.safetensors", "adapter_model.bin", "pytorch_adapter.bin")

log = logging.getLogger(__name__)

# the files in which transformers looks for weights, in this order
_STANDARD = (
    "model.safetensors",
    f"model.safetensors{_INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{_INDEX}",
)


def read_weights(
    folder: Path, *, allow_pickle: bool = False, ignore_adapter: bool = False
) -> dict[str, Tensor]:
    """Return the tensors of a model folder by name (one file, or the shards its index lists).

    They are those that transformers would read: what config.json names as `transformers_weights`,
    else the first of its own names that is there; a file of another name counts only without those.
    Wrappers' prefixes are taken off (see `unwrapped`). Raises UnsafeModelError if they are
    pickles and `allow_pickle` is off, or for files that are not regular ones of the folder;
    ModelError if there are no weights, more than `MAX_WEIGHTS` bytes, or they cannot be read,
    and for an adapter next to them (see `check_adapter`).
    """
    check_adapter(folder, ignore=ignore_adapter)
    files = _weight_files(folder)
    pickled = next((file for file in files if file.suffix in PICKLE_SUFFIXES), None)
    if pickled is not None and not allow_pickle:
        raise UnsafeModelError(_refusal(folder, pickled))
    return _merged(files, folder)


def standard_weights(names: Collection[str]) -> str | None:
    """Return which of a folder's files transformers reads weights from; None if there is none."""
    return next((name for name in _STANDARD if name in names), None)


def read_weight_file(
    path: Path, *, allow_pickle: bool = False, within: Path | None = None
) -> dict[str, Tensor]:
    """Return the tensors of one file by name; with `within`, one that is in that folder.

    Raises UnsafeModelError for a pickle if `allow_pickle` is off, ModelError for another kind of
    file, or one that cannot be read.
    """
    if path.suffix in PICKLE_SUFFIXES and not allow_pickle:
        raise UnsafeModelError(_refusal(path.parent, path))
    return unwrapped(_read(path, within), path)


def adapter_in(folder: Path) -> str | None:
    """Return the name of a file by which a folder has an adapter (LoRA and others), or None."""
    return next((name for name in _ADAPTERS if is_there(folder / name)), None)


def adapter_note(folder: Path) -> list[str]:
    """Return what a card says of an adapter in a model's folder; nothing if there is none."""
    name = adapter_in(folder)
    if name is None:
        return []
    return [
        f"MODEL has an adapter ({name}) next to its weights. It was left out "
        "(--ignore-adapter): MODEL with its adapter is another model, and nothing was done to "
        "that one"
    ]


def check_adapter(folder: Path, *, ignore: bool) -> None:
    """Raise ModelError for an adapter next to a model's weights, unless it is to be ignored.

    transformers applies it if peft is installed, so the weights alone are another model.
    """
    name = adapter_in(folder)
    if name is None:
        return
    if not ignore:
        raise ModelError(
            f"{folder}: an adapter ({name}) lies next to the weights. It is not read, so the "
            "result would differ from the model that transformers opens with peft. Merge it "
            "(peft: merge_and_unload, then save_pretrained), or leave it out of the result with "
            "--ignore-adapter (in a mapping: ignore_adapter: true)"
        )
    _say_left_out(folder, name)


@cache
def _say_left_out(folder: Path, name: str) -> None:
    # once, even if a model is opened many times
    log.warning("%s: the adapter next to the weights (%s) is left out of the result", folder, name)


def unwrapped(weights: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Return weights by their names, without the prefix that DDP and torch.compile put before all.

    Raises ModelError, naming some, if only a part of the names has such a prefix.
    """
    names = {name: name for name in weights}
    while names:
        wrapper = next((w for w in _WRAPPERS if any(n.startswith(w) for n in names)), None)
        if wrapper is None:
            break
        without = [name for name in names if not name.startswith(wrapper)]
        if without:
            having = next(name for name in names if name.startswith(wrapper))
            raise ModelError(
                f"{where}: some weights have the prefix {wrapper!r} ({having!r}) and others do "
                f"not ({without[0]!r}); expected all or none: save the state dict of the model "
                "inside of DistributedDataParallel or torch.compile"
            )
        names = {name.removeprefix(wrapper): full for name, full in names.items()}
    inner = next((name for name in names if f".{_WRAPPERS[1]}" in f".{name}"), None)
    if inner is not None:
        raise ModelError(
            f"{where}: {inner!r} is named by torch.compile; save the state dict of the model "
            "before it is compiled"
        )
    return {name: weights[full] for name, full in names.items()}


def agree(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors have one type, shape and content; odd types are not equal."""
    known = one.dtype == other.dtype and one.dtype in (*_FLOATS, torch.int64)
    return known and torch.equal(one, other)


def check_shapes(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], where: Path | str, hint: str = ""
) -> None:
    """Raise ModelError for a weight whose shape differs from that of the model's own of that name.

    Or for one that is not of floats while the model's own is.
    """
    for name, tensor in weights.items():
        if name in own and own[name].shape != tensor.shape:
            raise ModelError(
                f"{where}: {name} has shape {list(tensor.shape)}, the architecture says "
                f"{list(own[name].shape)}{hint}"
            )
        if name in own and own[name].is_floating_point():
            check_floats(name, tensor, where)


def check_floats(name: str, tensor: Tensor, where: Path | str) -> None:
    """Raise ModelError for a weight that is not plain float, or not finite.

    torch would copy integers and complex numbers as if they were floats, and a quantized
    weight means nothing without its quantizer.
    """
    if tensor.dtype not in _FLOATS:
        allowed = ", ".join(map(str, _FLOATS))
        raise ModelError(f"{where}: {name} is of {tensor.dtype}; allowed: {allowed}")
    if not bool(torch.isfinite(tensor).all()):
        raise ModelError(f"{where}: {name} has numbers that are not finite (NaN or infinite)")


def read_json(path: Path, within: Path | None = None) -> dict[str, Any]:
    """Return the object in a JSON file of a model's folder, all of its numbers finite.

    Raises ModelError if it is missing, larger than `MAX_JSON`, unreadable or not an object;
    UnsafeModelError if it is not a regular file of its folder (of `within`, if that is given).
    """
    if not is_there(path):
        raise ModelError(f"{path.parent}: no {path.name} found")
    content = read_foreign(path, MAX_JSON, within=within or path.parent, error=UnsafeModelError)
    try:
        # NaN and Infinity are Python's own addition to JSON, and 1e999 becomes infinite, too
        value = json.loads(content.decode(), parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ModelError(f"{path}: not valid JSON: it is nested too deeply") from error
    # it is not text, not JSON, or has a whole number of thousands of digits
    except ValueError as error:
        kind = kind_by_start(content[:512])
        why = f"it is {kind}" if kind is not None else error
        raise ModelError(f"{path}: not valid JSON: {why}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


def says(folder: Path, name: str, file: str = "config.json") -> str | None:
    """Return what a JSON file of a folder has under a name, None if it has no such text."""
    path = folder / file
    value = read_json(path).get(name) if is_there(path) else None
    return value if isinstance(value, str) else None


def weights_checksum(path: Path, within: Path | None = None) -> str:
    """Return the SHA-256 of a file of at most `MAX_WEIGHTS` bytes, as `read_weight_file` opens it.

    Raises UnsafeModelError for a file that it would not open.
    """
    return foreign_checksum(path, MAX_WEIGHTS, within=within, error=UnsafeModelError)


def checksums_in(folder: Path, files: Iterable[Path]) -> dict[str, str]:
    """Return the SHA-256 of files in a model's folder, by name; ModelError if they are too many."""
    listed = sorted(files)
    if len(listed) > MAX_FILES:
        raise ModelError(
            f"{folder}: {len(listed):,} files; a model has at most {MAX_FILES:,}: take out the rest"
        )
    return {path.name: weights_checksum(path, folder) for path in listed}


def _refusal(folder: Path, pickled: Path) -> str:
    return (
        f"{folder}: its weights are a pickle ({pickled.name}), which can run code when "
        "it is opened. Ask for a safetensors version, or pass --allow-pickle to read it with "
        "torch's weights_only unpickler"
    )


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _weight_files(folder: Path) -> list[Path]:
    stated = says(folder, "transformers_weights")
    if stated is not None and not stated.endswith((".safetensors", f".safetensors{_INDEX}")):
        raise ModelError(
            f"{folder / 'config.json'}: transformers_weights is {stated!r}; allowed: a name that "
            f"ends in .safetensors or .safetensors{_INDEX}"
        )
    name = stated or standard_weights({path.name for path in folder.iterdir()})
    if name is not None:
        file = _inside(folder, name, "its config.json")
        if not name.endswith(_INDEX):
            return [file]
        return [_inside(folder, shard, "its index") for shard in _indexed_files(file)]
    for suffixes in ((".safetensors",), PICKLE_SUFFIXES):
        found = sorted(p for p in folder.glob("*") if p.suffix in suffixes and not p.is_dir())
        weights = [path for path in found if not path.stem.startswith(_NO_WEIGHTS)]
        if len(weights) > 1:
            names = ", ".join(path.name for path in weights[:4])
            single = "model.safetensors" if weights[0].suffix in suffixes[:1] else _STANDARD[2]
            raise ModelError(
                f"{folder}: several files could be its weights ({names}) and no {single}{_INDEX} "
                f"says which; rename the one that is meant to {single}"
            )
        if weights:
            return weights
    raise ModelError(f"{folder}: no weights found; expected model.safetensors")


def _indexed_files(index: Path) -> list[str]:
    named = read_json(index).get("weight_map")
    files = list(named.values()) if isinstance(named, dict) else []
    if not files or not all(isinstance(file, str) for file in files):
        raise ModelError(f"{index}: expected a weight_map from names to files")
    return sorted(set(files))


def _inside(folder: Path, name: str, by: str) -> Path:
    # an index is attacker-controlled text: it may name only files of its folder
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise UnsafeModelError(
            f"{folder}: {by} names {name!r}, which could lie outside of the folder; "
            "allowed: plain names of files in it"
        )
    return folder / name


def _merged(files: list[Path], folder: Path) -> dict[str, Tensor]:
    size = 0
    for path in files:
        with open_foreign(path, MAX_WEIGHTS, within=folder, error=UnsafeModelError) as file:
            size += os.fstat(file.fileno()).st_size
    if size > MAX_WEIGHTS:
        raise ModelError(f"{folder}: {size:,} bytes of weights; allowed: at most {MAX_WEIGHTS:,}")
    weights: dict[str, Tensor] = {}
    for path in files:
        part = _read(path, folder)
        twice = next((name for name in part if name in weights), None)
        if twice is not None and not agree(part[twice], weights[twice]):
            raise ModelError(f"{folder}: {twice} is in two of its files, which disagree")
        weights.update(part)
    return unwrapped(weights, folder)


def _read(path: Path, within: Path | None) -> dict[str, Tensor]:
    """Return the tensors of a file that is opened once, so it cannot be swapped after a check."""
    if path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        known = ", ".join((".safetensors", *PICKLE_SUFFIXES))
        raise ModelError(f"{path}: not a known kind of weights file; allowed: {known}")
    with open_foreign(path, MAX_WEIGHTS, within=within, error=UnsafeModelError) as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise ModelError(f"{path}: it is empty (0 bytes); download it again")
        if path.suffix in PICKLE_SUFFIXES:
            return read_pickle(path, file)
        (header,) = struct.unpack("<Q", os.pread(file.fileno(), 8, 0).ljust(8, b"\0"))
        if MAX_HEADER < header < os.fstat(file.fileno()).st_size:
            raise ModelError(
                f"{path}: {header:,} bytes describe its tensors; allowed: at most {MAX_HEADER:,}"
            )
        try:
            # by name, as transformers goes through them; the file has them in another order
            return dict(sorted(load_file(f"/dev/fd/{file.fileno()}").items()))
        # RuntimeError: it does not fit into memory
        except (SafetensorError, OSError, RuntimeError) as error:
            kind = kind_by_start(os.pread(file.fileno(), 512, 0))
            why = f"it is {kind}" if kind is not None else in_a_line(error)
            raise ModelError(f"{path}: not a readable safetensors file: {why}") from error
