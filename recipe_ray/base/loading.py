"""Reading weights that somebody uploaded: safetensors, or pickle behind a flag, never code.

Models are hostile by assumption. safetensors is data; a pickle is a program, so pickle formats are
opened only where the user allows it, and then with torch's `weights_only=True` unpickler.
"""

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recipe_ray.base.errors import ModelError, UnsafeModelError

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def read_weights(folder: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a model folder by name (one file, or the shards its index lists).

    Raises UnsafeModelError where there are only pickle files and `allow_pickle` is off, ModelError
    where there are no weights or they cannot be read.
    """
    files = _weight_files(folder, "model.safetensors", ".safetensors")
    if files:
        return _merged(files, _read_safetensors)
    pickles = _weight_files(folder, "pytorch_model.bin", *PICKLE_SUFFIXES)
    if not pickles:
        raise ModelError(f"{folder}: no weights found; expected model.safetensors")
    if not allow_pickle:
        raise UnsafeModelError(_refusal(folder, pickles[0]))
    return _merged(pickles, _read_pickle)


def read_weight_file(path: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Return the tensors of one file by name.

    Raises UnsafeModelError for a pickle where `allow_pickle` is off, ModelError for another kind of
    file, or one that cannot be read.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix not in PICKLE_SUFFIXES:
        known = ", ".join((".safetensors", *PICKLE_SUFFIXES))
        raise ModelError(f"{path}: not a known kind of weights file; allowed: {known}")
    if not allow_pickle:
        raise UnsafeModelError(_refusal(path.parent, path))
    return _read_pickle(path)


def check_shapes(
    weights: Mapping[str, Tensor], own: Mapping[str, Tensor], where: Path | str, hint: str = ""
) -> None:
    """Raise ModelError for a weight that is shaped otherwise than the model's own of that name.

    Or for one that is not of floats where the model's own is.
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
    """Raise ModelError for a weight that is no plain float.

    torch would copy integers and complex numbers as if they were, and what a quantizer made of a
    weight means nothing without it.
    """
    if tensor.dtype not in _FLOATS:
        allowed = ", ".join(map(str, _FLOATS))
        raise ModelError(f"{where}: {name} is of {tensor.dtype}; allowed: {allowed}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, all of its numbers finite.

    Raises ModelError where it is missing, unreadable or not an object.
    """
    try:
        # NaN and Infinity are Python's own addition to JSON, and 1e999 becomes infinite, too
        value = json.loads(path.read_text(), parse_float=_finite, parse_constant=_finite)
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: no {path.name} found") from None
    except RecursionError as error:
        raise ModelError(f"{path}: not valid JSON: it is nested too deeply") from error
    # that it is no text, no JSON, or has a whole number of thousands of digits
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


def says(folder: Path, name: str, file: str = "config.json") -> str | None:
    """Return what a JSON file of a folder has under a name, None where it has no such text."""
    path = folder / file
    value = read_json(path).get(name) if path.is_file() else None
    return value if isinstance(value, str) else None


def in_a_line(error: BaseException) -> str:
    """Return what a library's error says, without the pages that some of them append."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__


def _refusal(folder: Path, pickled: Path) -> str:
    return (
        f"{folder}: its weights are a pickle ({pickled.name}), which can run code when "
        "it is opened. Ask for a safetensors version, or pass --allow-pickle to read it with "
        "torch's weights_only unpickler"
    )


def _finite(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def _weight_files(folder: Path, single: str, *suffixes: str) -> list[Path]:
    if (folder / single).is_file():
        return [folder / single]
    index = folder / f"{single}.index.json"
    if index.is_file():
        return [_inside(folder, name) for name in _indexed_files(index)]
    found = sorted(p for p in folder.glob("*") if p.suffix in suffixes and p.is_file())
    # optimiser states and training arguments are not weights
    return [path for path in found if not path.stem.startswith(("optimizer", "training_args"))][:1]


def _indexed_files(index: Path) -> list[str]:
    named = read_json(index).get("weight_map")
    files = list(named.values()) if isinstance(named, dict) else []
    if not files or not all(isinstance(file, str) for file in files):
        raise ModelError(f"{index}: expected a weight_map from names to files")
    return sorted(set(files))


def _inside(folder: Path, name: str) -> Path:
    # An index is attacker-controlled text: it may not point out of its folder. The text is judged,
    # not where the file leads: in the hub's cache every file is a link to ../../blobs
    if name in ("", ".", "..") or any(sign in name for sign in "/\\\0"):
        raise UnsafeModelError(
            f"{folder}: its index names {name!r}, which could lie outside of the folder; "
            "allowed: plain names of files in it"
        )
    return folder / name


def _merged(files: list[Path], read: Any) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for file in files:
        weights.update(read(file))
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file: {error}") from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # crafted bytes make the unpickler raise whatever they like
        raise UnsafeModelError(
            f"{path}: refused by the weights_only unpickler: {in_a_line(error)}"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and _is_held(value) for name, value in state.items()
    ):
        raise ModelError(f"{path}: expected a state dict of tensors by their names")
    return state


def _is_held(value: Any) -> bool:
    # a pickle can describe a huge tensor of no storage, or of one number repeated: as a copy of
    # either is made, it would have to fit into memory
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_nested)
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
