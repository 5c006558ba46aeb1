"""Opening the user's data files, and the checksums of their content.

A path that the user names may be a link to a regular file anywhere: that is how clusters share
data. What lies in a folder may not lead out of it, because somebody else may have filled it.
"""

import hashlib
import os
import sys
from functools import lru_cache
from io import BufferedReader
from pathlib import Path

from recipe_ray.base.errors import DataError
from recipe_ray.base.foreign import open_foreign
from recipe_ray.data.packed import content_checksum, packing_of


def opened(file: Path, owner: str, folder: Path | None = None) -> BufferedReader:
    """Open a regular file of any size, within `folder` if given; raises DataError for another."""
    try:
        return open_foreign(file, sys.maxsize, within=folder, error=DataError)
    except DataError as error:
        raise DataError(f"{owner}: {error}") from error


def shards_checksum(files: tuple[Path, ...], owner: str, folder: Path | None = None) -> str:
    """Return the SHA-256 of a file's content, or that of all shards' sums in order."""
    sums = [checksum(file, owner, folder) for file in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def described_shards(files: tuple[Path, ...], sha256: str) -> str:
    """Return, for people, the file's name or folder and number of shards, and the checksum."""
    many = f"{files[0].parent.name}/ ({len(files)} shards)"
    return f"{files[0].name if len(files) == 1 else many}, SHA-256 {sha256[:12]}"


def stamp(file: Path, owner: str, folder: Path | None = None) -> tuple[int, int]:
    """Return a regular file's size and time; raises DataError as `opened` does."""
    with opened(file, owner, folder) as content:
        found = os.fstat(content.fileno())
    return found.st_size, found.st_mtime_ns


def checksum(file: Path, owner: str, folder: Path | None = None) -> str:
    """Return the SHA-256 of a file's content, unpacked; raises DataError as `opened` does."""
    return _checksum(file, owner, folder, *stamp(file, owner, folder))


@lru_cache(maxsize=1024)
def _checksum(file: Path, owner: str, folder: Path | None, size: int, mtime_ns: int) -> str:
    # size and time are only there to forget the sum of a file that has changed since
    with opened(file, owner, folder) as content:
        return content_checksum(content, packing_of(file), size, f"{owner}: {file}")
