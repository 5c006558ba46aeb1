"""Reading weights that somebody uploaded: safetensors, or pickle behind a flag, never code.

Models are hostile by assumption. safetensors is data; a pickle is a program, so pickle formats are
opened only where the user allows it, and then with torch's `weights_only=True` unpickler.
"""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from recipe_ray.base.errors import ModelError, UnsafeModelError

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
    """Raise ModelError for a weight that is shaped otherwise than the model's own of that name."""
    for name, tensor in weights.items():
        if name in own and own[name].shape != tensor.shape:
            raise ModelError(
                f"{where}: {name} has shape {list(tensor.shape)}, the architecture says "
                f"{list(own[name].shape)}{hint}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise ModelError where it is missing or not an object."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: no {path.name} found") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got a {type(value).__name__}")
    return value


def _refusal(folder: Path, pickled: Path) -> str:
    return (
        f"{folder}: its weights are a pickle ({pickled.name}), which can run code when "
        "it is opened. Ask for a safetensors version, or pass --allow-pickle to read it with "
        "torch's weights_only unpickler"
    )


def says(folder: Path, name: str, file: str = "config.json") -> str | None:
    """Return what a JSON file of a folder has under a name, None where it has no such text."""
    path = folder / file
    value = read_json(path).get(name) if path.is_file() else None
    return value if isinstance(value, str) else None


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
    # an index is attacker-controlled text: it may not point out of its folder
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise UnsafeModelError(f"{folder}: its index names a file outside of the folder: {name}")
    return path


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
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UnsafeModelError(
            f"{path}: refused by the weights_only unpickler: {reason}"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(f"{path}: expected a state dict of tensors")
    return state
