"""Tables of samples: where they may lie, what identifies their content, how they are streamed.

A source knows its identity before it is read and never holds more than a batch. This module
knows local tables only; `image_sources` and `tar_shards` have image files, `hub` and `embedded` the
sources elsewhere.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from recipe_ray.base.errors import DataError, suggest
from recipe_ray.base.fingerprint import file_checksum
from recipe_ray.data.formats import READERS

TEXT_LIMIT = 1_000_000  # characters; a longer "text" is a file read in the wrong format


class Source(Protocol):
    """A resolved table: it knows the identity of its content before it is read."""

    def identity(self) -> dict[str, Any]:
        """Return what decides the content, in plain JSON values."""

    def describe(self) -> str:
        """Return where the content comes from, for people."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the rows; memory stays bounded by a batch."""


@dataclass(frozen=True)
class Locations:
    """Where data may be found on this machine; part of the execution, never hashed."""

    data_dir: Path | None
    cache_dir: Path

    @classmethod
    def from_environment(cls, data: Path | None = None) -> "Locations":
        """Take the data folder from `data` or RECIPE_RAY_DATA, the cache from RECIPE_RAY_CACHE.

        Raises DataError for a data folder that does not exist.
        """
        named = data or os.environ.get("RECIPE_RAY_DATA") or None
        cache = os.environ.get("RECIPE_RAY_CACHE") or "~/.cache/recipe-ray"
        found = cls(_absolute(named) if named else None, _absolute(cache))
        found.check()
        return found

    def check(self) -> None:
        """Raise DataError unless the data folder, where one is named, is a folder."""
        if self.data_dir is not None and not self.data_dir.is_dir():
            problem = "is a file" if self.data_dir.exists() else "does not exist"
            raise DataError(
                f"the data folder {self.data_dir} {problem}; give an existing folder with "
                "--data or RECIPE_RAY_DATA, or neither to read from the Hugging Face hub"
            )

    def data_file(self, name: str) -> Path | None:
        """Return `name`.parquet of the data folder, or None where there is none."""
        self.check()
        file = self.data_dir / f"{name}.parquet" if self.data_dir else None
        return file if file is not None and file.exists() else None


def _absolute(path: str | Path) -> Path:
    """A stage's process works in another folder than the command that started it."""
    return Path(path).expanduser().absolute()


@dataclass(frozen=True)
class FileSource:
    """Files of one format, the shards of one table in the order of their names."""

    files: tuple[Path, ...]
    owner: str  # what asked for it, for messages: "corpus 'file'"

    def identity(self) -> dict[str, Any]:
        """Return the format and the SHA-256 of the content, not where the files lie."""
        whole = shards_checksum(self.files, self.owner)
        return {"source": READERS[self.files[0].suffix].format, "sha256": whole}

    def describe(self) -> str:
        """Return the file name, or folder and number of shards, with the start of the checksum."""
        return described_shards(self.files, self.identity()["sha256"])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the rows of all shards; raises DataError for a file that cannot be read."""
        for file in self.files:
            yield from READERS[file.suffix].read(file, f"{self.owner}: {file}")


@dataclass(frozen=True)
class Derived:
    """A table made from another by a fixed rule, which is part of its identity."""

    raw: Source
    rule: Mapping[str, Any]  # plain JSON values; a changed rule needs a changed value here
    derive: Callable[[Source], Iterator[pa.RecordBatch]]

    def identity(self) -> dict[str, Any]:
        """Return the raw table's identity and the rule."""
        return {**self.raw.identity(), "derived": dict(self.rule)}

    def describe(self) -> str:
        """Return where the raw table comes from and the rule."""
        rule = ", ".join(f"{key} {value}" for key, value in self.rule.items())
        return f"{self.raw.describe()} ({rule})"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the derived rows."""
        return self.derive(self.raw)


def open_path(path: str | Path, owner: str) -> FileSource:
    """Return the source of a file, or of a folder of shards in one format.

    Raises DataError for a path that does not exist, an unknown format or a mixed folder.
    """
    place = existing(path, owner)
    allowed = ", ".join(READERS)
    if place.is_file():
        if place.suffix not in READERS:
            raise DataError(f"{owner}: {place}: format {place.suffix!r} is none of {allowed}")
        return FileSource((place,), owner)
    shards = tuple(sorted(file for file in place.iterdir() if file.suffix in READERS))
    if not shards:
        raise DataError(f"{owner}: the folder {place} has no file ending in {allowed}")
    if len({file.suffix for file in shards}) > 1:
        raise DataError(f"{owner}: the folder {place} mixes formats; keep one of {allowed}")
    return FileSource(shards, owner)


def existing(path: str | Path, owner: str) -> Path:
    """Return a path given by the user; raise DataError, naming the nearest, where nothing is."""
    place = Path(path).expanduser()
    if not place.exists():
        near = suggest(
            place.name, (p.name for p in place.parent.iterdir()) if place.parent.is_dir() else ()
        )
        raise DataError(f"{owner}: {place} does not exist{near}")
    return place


def column_texts(source: Source, column: str, owner: str) -> Iterator[str]:
    """Stream the texts of one column, stripped; raises DataError as `batch_texts` does."""
    row = 0
    for batch in source.batches():
        yield from batch_texts(batch, column, owner, row)
        row += batch.num_rows


def batch_texts(batch: pa.RecordBatch, column: str, owner: str, before: int) -> Iterator[str]:
    """Return one column's texts, stripped, an absent one as ""; `before` rows came earlier.

    Raises DataError for a column that is unknown or holds no text, and for a text of more than
    `TEXT_LIMIT` characters, naming its row counted from 1.
    """
    for row, value in enumerate(column_of(batch, column, owner).to_pylist(), before + 1):
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{owner}: column {column!r} holds {type(value).__name__} values, not text "
                f"(row {row}); name the column of texts"
            )
        if value is not None and len(value) > TEXT_LIMIT:
            raise DataError(
                f"{owner}: row {row} is a text of {len(value):,} characters; allowed: "
                f"{TEXT_LIMIT:,}. Is there one text a row?"
            )
        yield (value or "").strip()


def batch_images(batch: pa.RecordBatch, column: str, owner: str, before: int) -> Iterator[bytes]:
    """Return one column's encoded images; `before` rows came earlier.

    A column of the hub's image feature (a struct with `bytes`) counts as one of bytes. Raises
    DataError for a column that is unknown, and for a row without an image.
    """
    for row, value in enumerate(column_of(batch, column, owner).to_pylist(), before + 1):
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            held = type(data).__name__ if data else "nothing"
            raise DataError(
                f"{owner}: row {row}: column {column!r} holds {held}, not the bytes of an image; "
                "name the column of images"
            )
        yield data


def column_of(batch: pa.RecordBatch, column: str, owner: str) -> Any:
    """Return one column of a batch; raises DataError naming the columns there are."""
    names = list(batch.schema.names)
    if column not in names:
        raise DataError(
            f"{owner}: no column {column!r}{suggest(column, names)}; columns: {', '.join(names)}"
        )
    return batch.column(column)


def shards_checksum(files: tuple[Path, ...], owner: str) -> str:
    """Return the SHA-256 of a file, or that of all shards' sums in order."""
    sums = [_checksum(file, *_stamp(file, owner)) for file in files]
    return sums[0] if len(sums) == 1 else hashlib.sha256("\n".join(sums).encode()).hexdigest()


def described_shards(files: tuple[Path, ...], sha256: str) -> str:
    """Return, for people, the file's name or folder and number of shards, and the checksum."""
    many = f"{files[0].parent.name}/ ({len(files)} shards)"
    return f"{files[0].name if len(files) == 1 else many}, SHA-256 {sha256[:12]}"


def _stamp(file: Path, owner: str) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError as error:
        raise DataError(f"{owner}: {file} cannot be read: {error.strerror}") from error
    return found.st_size, found.st_mtime_ns


@lru_cache(maxsize=1024)
def _checksum(file: Path, size: int, mtime_ns: int) -> str:
    # size and time are only there to forget the sum of a file that has changed since
    return file_checksum(file)
