"""Identity: the hash of everything that can change a number, and of nothing else.

It refuses what it cannot hash faithfully (sets, objects, NaN) instead of hashing their `repr`.
"""

import hashlib
import json
import math
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

KEY_LENGTH = 16


def fingerprint(value: Any) -> str:
    """Return the 16-digit hexadecimal key of a tree of dicts, lists and plain scalars.

    Raises TypeError or ValueError, naming the path, for anything with no faithful JSON form.
    """
    text = json.dumps(_canonical(value, "$"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def file_checksum(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return stream_checksum(file)


def stream_checksum(file: BufferedReader | BytesIO) -> str:
    """Return the SHA-256 of what is left to read of a binary file."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def _canonical(value: Any, path: str) -> Any:
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path}: {value} has no faithful hash")
        # 1 and 1.0 are the same setting in a YAML file
        return int(value) if value.is_integer() else value
    if isinstance(value, (list, tuple)):
        return [_canonical(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{path}: keys must be strings, got {list(value)!r}")
        return {key: _canonical(item, f"{path}.{key}") for key, item in value.items()}
    raise TypeError(f"{path}: a {type(value).__name__} has no faithful hash")
