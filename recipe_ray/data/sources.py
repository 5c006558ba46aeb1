"""Tables of samples: where they may be, what identifies their content, how they are streamed.

A source knows its identity before it is read and never holds more than a batch. This module
knows only local tables. `image_sources` and `tar_shards` have image files, `hub` and `packages` the
sources elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from recipe_ray.base.errors import DataError, suggest
from recipe_ray.base.limits import IMAGE, TEXT, UNPACKED, unpacked_limit
from recipe_ray.base.paths import expanded
from recipe_ray.data.content import (
    FIRST_LINE,
    checksum,
    described_shards,
    opened,
    packing_of,
    shards_checksum,
    stamp,
    unpacked,
)
from recipe_ray.data.folders import table_files
from recipe_ray.data.formats import label_number, no_format, reader_of

if TYPE_CHECKING:
    import pyarrow as pa

# a column's name as people write it; a longer one is a text
_NAME_LENGTH, _NAME_WORDS = 40, 3
_NAMES_SHOWN = 30
_ROW_BYTES = 16  # that a row counts for at least


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
    """The places of data on this machine; part of the execution, never hashed."""

    data_dir: Path | None
    cache_dir: Path

    @classmethod
    def from_environment(cls, data: Path | None = None) -> Locations:
        """Take the data folder from `data` or RECIPE_RAY_DATA, the cache from RECIPE_RAY_CACHE.

        Raises DataError for a data folder that does not exist.
        """
        named = data or os.environ.get("RECIPE_RAY_DATA") or None
        cache = os.environ.get("RECIPE_RAY_CACHE") or "~/.cache/recipe-ray"
        found = cls(_absolute(named) if named else None, _absolute(cache))
        found.check()
        return found

    def check(self) -> None:
        """Raise DataError unless the data folder, if one is named, is a folder."""
        if self.data_dir is not None and not self.data_dir.is_dir():
            problem = "is a file" if self.data_dir.exists() else "does not exist"
            raise DataError(
                f"the data folder {self.data_dir} {problem}; give an existing folder with "
                "--data or RECIPE_RAY_DATA, or neither to read from the Hugging Face hub"
            )

    def data_file(self, name: str) -> Path | None:
        """Return `name`.parquet of the data folder, or None if there is none."""
        self.check()
        file = self.data_dir / f"{name}.parquet" if self.data_dir else None
        return file if file is not None and file.exists() else None


def _absolute(path: str | Path) -> Path:
    """A stage's process works in another folder than the command that started it."""
    return expanded(path).absolute()


@dataclass(frozen=True)
class FileSource:
    """Files of one format, the shards of one table in the order of their names.

    With `folder`, none of them may lead out of it. `partitions` are columns that each file's place
    adds to its rows.
    """

    files: tuple[Path, ...]
    owner: str  # what needs it, for messages: "corpus 'file'"
    folder: Path | None = None
    partitions: tuple[Mapping[str, str | int | None], ...] = ()

    def identity(self) -> dict[str, Any]:
        """Return the format and the SHA-256 of the content, not of the files' place or packing.

        Raises DataError for a file that cannot be read, or unpacks to too much.
        """
        reader = reader_of(self.files[0])
        assert reader is not None, "open_path takes files of known formats"
        whole = shards_checksum(self.files, self.owner, self.folder)
        return {"source": reader.format, "sha256": whole, **self._partition_identity()}

    def _partition_identity(self) -> dict[str, Any]:
        return (
            {"partitions": [dict(values) for values in self.partitions]} if self.partitions else {}
        )

    def describe(self) -> str:
        """Return the file name, or folder and number of shards, with the start of the checksum."""
        return described_shards(self.files, self.identity()["sha256"])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the rows of all shards.

        Raises DataError for a file that cannot be read, and for files whose rows come to more bytes
        than `unpacked_limit` allows for their size on disk.
        """
        size = sum(stamp(file, self.owner, self.folder)[0] for file in self.files)
        limit, held = unpacked_limit(size), 0
        for number, file in enumerate(self.files):
            for batch in self._read(file):
                held += batch.nbytes + _ROW_BYTES * batch.num_rows
                if held > limit:
                    raise UNPACKED.exceeded(
                        f"{self.owner}: {file}: its rows come to more than {limit:,} bytes", limit
                    )
                yield self._with_partition(batch, number)

    def _read(self, file: Path) -> Iterator[pa.RecordBatch]:
        reader, packing = reader_of(file), packing_of(file)
        assert reader is not None, "open_path takes files of known formats"
        if packing:  # counted before the first row is made
            checksum(file, self.owner, self.folder)
        with opened(file, self.owner, self.folder) as content:
            yield from reader.read(unpacked(content, packing), f"{self.owner}: {file}")

    def _with_partition(self, batch: pa.RecordBatch, number: int) -> pa.RecordBatch:
        import pyarrow as pa

        for name, value in (self.partitions[number] if self.partitions else {}).items():
            if name in batch.schema.names:
                raise DataError(
                    f"{self.owner}: {self.files[number]} has a column {name!r}, which its folder's "
                    "name gives too; keep one of them"
                )
            kinds = {type(values[name]) for values in self.partitions}
            kind = pa.int64() if int in kinds else pa.string()
            batch = batch.append_column(name, pa.array([value] * batch.num_rows, kind))
        return batch


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
    """Return the source of a file, or of a folder of shards in one format (`folders`).

    A file that is named may be a link to anywhere. Raises DataError for a path that does not exist
    or is not a regular file, an unknown format or a mixed folder.
    """
    place = existing(path, owner)
    if place.is_dir():
        found = table_files(place, owner)
        return FileSource(found.files, owner, place, found.partitions)
    if reader_of(place) is None:
        raise DataError(f"{owner}: {no_format(place)}")
    opened(place, owner).close()
    return FileSource((place,), owner)


def existing(path: str | Path, owner: str) -> Path:
    """Return a path given by the user; raise DataError, naming the nearest, if it is missing."""
    place = expanded(path)
    try:
        found = place.exists()
    except (OSError, ValueError) as error:  # a folder that may not be entered, a zero in a name
        raise DataError(f"{owner}: {str(place)[:200]!r} cannot be read: {error}") from error
    if not found:
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
    `TEXT` characters (a file read in the wrong format), naming its row counted from 1.
    """
    limit = TEXT.value
    for row, value in enumerate(column_of(batch, column, owner).to_pylist(), before + 1):
        if value is not None and not isinstance(value, str):
            raise DataError(
                f"{owner}: column {column!r} holds {type(value).__name__} values, not text "
                f"(row {row}); name the column of texts"
            )
        if value is not None and len(value) > limit:
            raise TEXT.exceeded(
                f"{owner}: row {row} is a text of {len(value):,} characters (is there one text per "
                "row?)",
                limit,
            )
        yield (value or "").strip()


def batch_images(batch: pa.RecordBatch, column: str, owner: str, before: int) -> Iterator[bytes]:
    """Return one column's encoded images; `before` rows came earlier.

    A column of the hub's image feature (a struct with `bytes`) counts as one of bytes. Raises
    DataError for a column that is unknown, a row without an image, and an image of over `IMAGE`
    bytes.
    """
    limit = IMAGE.value
    for row, value in enumerate(column_of(batch, column, owner).to_pylist(), before + 1):
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes) or not data:
            held = type(data).__name__ if data else "nothing"
            raise DataError(
                f"{owner}: row {row}: column {column!r} holds {held}, not the bytes of an image; "
                "name the column of images"
            )
        if len(data) > limit:
            raise IMAGE.exceeded(f"{owner}: row {row}: the image has {len(data):,} bytes", limit)
        yield data


def column_of(batch: pa.RecordBatch, column: str, owner: str) -> Any:
    """Return one column of a batch.

    Raises DataError that names the columns or, if they look like a first row of data, says
    that the header is missing.
    """
    names = list(batch.schema.names)
    if column in names:
        return batch.column(column)
    if has_first_line(batch) and _is_data(batch):
        raise DataError(
            f"{owner}: no column {column!r}. The file seems to have no header line: its first line "
            f"has {len(names)} fields that look like data; {HEADER}"
        )
    shown = ", ".join(name[:_NAME_LENGTH] for name in names[:_NAMES_SHOWN])
    more = f" and {len(names) - _NAMES_SHOWN:,} more" if len(names) > _NAMES_SHOWN else ""
    raise DataError(
        f"{owner}: no column {column!r}{suggest(column, names)}; columns: {shown}{more}"
    )


HEADER = (
    "put a line with the names of the columns on top, such as text,label (with a tab between them "
    "in a .tsv)"
)


def has_first_line(batch: pa.RecordBatch) -> bool:
    """Tell whether the names of the columns come from a file's first line."""
    return FIRST_LINE.items() <= (batch.schema.metadata or {}).items()


def _is_data(batch: pa.RecordBatch) -> bool:
    """Tell whether a first line is a row of data.

    Then a field is a number, several words, or again a value of its column (a label).
    """
    return any(
        label_number(name) is not None
        or len(name) > _NAME_LENGTH
        or len(name.split()) > _NAME_WORDS
        or name in column.to_pylist()
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    )
