"""Files that carry their own checksum: result rows (Parquet) and plans (JSON).

A field holds the SHA-256 of the whole file, taken while the field's digits were zeros. So the check
needs neither a second file nor the file's structure, nothing damaged is parsed, and the file stays
what it is: DuckDB and pandas read the Parquet as before. Files that were written before this, and
those of others, have no such field and are not checked. It protects against damage, not against
somebody who also replaces the checksum.
"""

import hashlib
import json
import re
from typing import Any

from recipe_ray.base.errors import StoreError
from recipe_ray.stages.manifest import parse_json

SEAL = "recipe_ray_sha256"  # the field's name
OPEN_SEAL = "sha256:" + "0" * 64  # its value before it is known
_DIGITS = re.compile(rb"sha256:([0-9a-f]{64})")


def sealed(data: bytes) -> bytes:
    """Return a file's bytes with the checksum in the place of OPEN_SEAL, which they hold last."""
    start = data.rindex(OPEN_SEAL.encode())
    digits = hashlib.sha256(data).hexdigest()
    return data[:start] + f"sha256:{digits}".encode() + data[start + len(OPEN_SEAL) :]


def check_seal(data: bytes, shown: str, repair: str) -> None:
    """Raise StoreError, which names the file and the repair, if a sealed file was changed.

    Every flipped bit is noticed: one in the field's name leaves its value, and the other way round.
    """
    *_, last = [None, *_DIGITS.finditer(data)]
    if last is None and SEAL.encode() not in data:
        return
    if last is not None:
        blank = data[: last.start()] + OPEN_SEAL.encode() + data[last.end() :]
        if hashlib.sha256(blank).hexdigest().encode() == last[1]:
            return
    raise StoreError(
        f"{shown}: damaged or edited: its checksum is not the one written with it; {repair}"
    )


def sealed_json(value: dict[str, Any]) -> bytes:
    """Return an object as JSON that carries its checksum."""
    return sealed((json.dumps({**value, SEAL: OPEN_SEAL}, indent=1) + "\n").encode())


def unsealed_json(data: bytes, shown: str, repair: str) -> dict[str, Any]:
    """Return the object that was sealed; raise StoreError naming the file if it is damaged."""
    check_seal(data, shown, repair)
    value = parse_json(data, shown)
    value.pop(SEAL, None)
    return value
