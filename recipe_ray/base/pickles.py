"""Reading a pickle of weights by torch's weights_only unpickler, after its user allowed it."""

import re
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from recipe_ray.base.errors import ModelError, UnsafeModelError, in_a_line


def read_pickle(path: Path, place: Path) -> dict[str, Tensor]:
    """Return the tensors by name in the regular file at `place`, which messages call `path`.

    Raises UnsafeModelError for anything that the unpickler refuses, and for an archive that unpacks
    to more than it is; ModelError for what is no state dict.
    """
    _check_stored(path, place)
    try:
        loaded = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:  # crafted bytes make the unpickler raise whatever they like
        # torch's own text tells how to switch the protection off
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {asked[1]}" if asked else type(error).__name__
        raise UnsafeModelError(
            f"{path}: refused by the weights_only unpickler, which reads tensors and runs no code "
            f"({what}). Do not open it by other means: ask its author for a safetensors version"
        ) from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and _is_held(value) for name, value in state.items()
    ):
        raise ModelError(f"{path}: expected a state dict of tensors by their names")
    return state


def _check_stored(path: Path, place: Path) -> None:
    if not is_zipfile(place):
        return
    try:
        with ZipFile(place) as archive:
            entries = archive.infolist()
    except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UnsafeModelError(f"{path}: a damaged archive: {in_a_line(error)}") from error
    packed = [entry.filename for entry in entries if entry.compress_type != ZIP_STORED]
    # entries may overlap, too
    if packed or sum(entry.file_size for entry in entries) > place.stat().st_size:
        raise UnsafeModelError(
            f"{path}: an archive that unpacks to more than its own size, as torch never writes "
            "one; ask for a safetensors version"
        )


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
