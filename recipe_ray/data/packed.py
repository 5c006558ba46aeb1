"""Packed files (`train.csv.gz`): unpacked as they are read, never to more than a stated size.

A packed file is its content: it has the checksum, so the identity and the key, of the same file
unpacked. That content is counted, without being kept, before the first row is made of it.
"""

import hashlib
from io import BufferedReader
from pathlib import Path

import pyarrow as pa

from recipe_ray.base.errors import DataError
from recipe_ray.base.fingerprint import stream_checksum
from recipe_ray.base.limits import UNPACKED, unpacked_limit

PACKINGS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_PIECE = 2**20


def packing_of(file: Path) -> str | None:
    """Return how a file is packed, by its name, or None."""
    return PACKINGS.get(file.suffix.lower())


def unpacked(file: BufferedReader, packing: str | None) -> BufferedReader:
    """Return a binary stream of the content; reading it raises OSError if it is damaged."""
    if packing is None:
        return file
    stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), packing)
    return BufferedReader(stream, _PIECE)


def content_checksum(file: BufferedReader, packing: str | None, size: int, where: str) -> str:
    """Return the SHA-256 of the content of a file of `size` bytes.

    Raises DataError for a packed file that is damaged or unpacks to more than is allowed.
    """
    if packing is None:
        return stream_checksum(file)
    digest, held, limit = hashlib.sha256(), 0, unpacked_limit(size)
    try:
        with unpacked(file, packing) as content:
            while piece := content.read(_PIECE):
                held += len(piece)
                if held > limit:
                    raise UNPACKED.exceeded(
                        f"{where} has {size:,} bytes and unpacks to more than {limit:,}", limit
                    )
                digest.update(piece)
    except (OSError, EOFError) as error:
        raise DataError(f"{where} cannot be unpacked ({packing}): {error}") from error
    return digest.hexdigest()
