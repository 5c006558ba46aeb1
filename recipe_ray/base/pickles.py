"""Reading a pickle of weights, if the user allows it: tensors by name, in bounded time."""

import os
import re
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from recipe_ray.base.errors import ModelError, UnsafeModelError, in_a_line

MAX_STEPS = 2_000_000  # instructions of a pickle (20 or so for each tensor), and its bytes


def read_pickle(path: Path, file: BufferedReader) -> dict[str, Tensor]:
    """Return the tensors by name in the open `file`, which messages call `path`.

    Raises UnsafeModelError for anything that the unpickler refuses, and for an archive that unpacks
    to more than it is; ModelError for what is not a state dict.
    """
    _check_stored(path, file)
    file.seek(0)
    try:
        loaded = torch.load(_FewSteps(file), map_location="cpu", weights_only=True)
    except Exception as error:  # crafted bytes can make the unpickler raise any error
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


def _check_stored(path: Path, file: BufferedReader) -> None:
    if not is_zipfile(file):
        return
    try:
        with ZipFile(file) as archive:
            entries = archive.infolist()
    except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UnsafeModelError(f"{path}: a damaged archive: {in_a_line(error)}") from error
    if any(one.filename.endswith("data.pkl") and one.file_size > MAX_STEPS for one in entries):
        raise UnsafeModelError(f"{path}: its pickle has more than {MAX_STEPS:,} bytes")
    packed = [entry.filename for entry in entries if entry.compress_type != ZIP_STORED]
    # entries may overlap, too
    if packed or sum(entry.file_size for entry in entries) > os.fstat(file.fileno()).st_size:
        raise UnsafeModelError(
            f"{path}: an archive that unpacks to more than its own size, as torch never writes "
            "one; ask for a safetensors version"
        )


class _FewSteps(BufferedReader):
    """The file, of which a pickle can read no more than `MAX_STEPS` instructions.

    The unpickler of `weights_only` is in Python, and a crafted file can keep it busy for hours.
    """

    def __init__(self, file: BufferedReader) -> None:
        # closing it leaves the file open
        super().__init__(FileIO(file.fileno(), closefd=False))
        self._steps = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read; raise ValueError if that was done too often."""
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise ValueError(f"more than {MAX_STEPS:,} instructions")
        return super().read(size)


def _is_held(value: Any) -> bool:
    # a pickle can describe a huge tensor without storage, or of one number repeated: as a copy of
    # either is made, it would have to fit into memory
    return (
        isinstance(value, Tensor)
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not (value.is_quantized or value.is_nested)
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )
