"""Opening the user's data files: their checksums, packed files, and rows read one by one.

A path that the user names may be a link to a regular file anywhere: that is how clusters share
data. A link inside a folder may not lead out of it, because somebody else may have filled it.

A packed file (`train.csv.gz`) counts as its content: it has the checksum, and so the identity and
the key, of the same file unpacked. It is unpacked while it is read, never to more than a stated
size.

Rows become record batches of bounded rows, characters and columns. Errors give the row but never
its text: a data set may hold what nobody wants in a log.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from recipe_ray.base.errors import DataError
from recipe_ray.base.fingerprint import stream_checksum
from recipe_ray.base.foreign import is_web_page, open_foreign
from recipe_ray.base.limits import COLUMNS, LINE, UNPACKED, unpacked_limit

if TYPE_CHECKING:
    import pyarrow as pa

PACKINGS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_PIECE = 2**20


def packing_of(file: Path) -> str | None:
    """Return how a file is packed, by its name, or None."""
    return PACKINGS.get(file.suffix.lower())


def unpacked(file: BufferedReader, packing: str | None) -> BufferedReader:
    """Return a binary stream of the content; reading it raises OSError if it is damaged."""
    import pyarrow as pa

    if packing is None:
        return file
    stream = pa.CompressedInputStream(pa.PythonFile(file, mode="r"), packing)
    return BufferedReader(stream, _PIECE)


def content_checksum(file: BufferedReader, packing: str | None, size: int, where: str) -> str:
    """Return the SHA-256 of the content of a file of `size` bytes.

    Raises DataError for a packed file that is damaged or unpacks to more than is allowed.
    """
    if packing is None:
        try:
            return stream_checksum(file)
        except OSError as error:
            raise DataError(f"{where} cannot be read: {error.strerror or error}") from error
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
    # size and time serve only to forget the sum of a file that has changed since
    with opened(file, owner, folder) as content:
        return content_checksum(content, packing_of(file), size, f"{owner}: {file}")


_MARKS = {  # how a text in another encoding begins, the longer ones first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
_PACKED[b"\xfd7zXZ"] = "xz"
_OFFICE = (b"[Content_Types].xml", b"mimetypeapplication/vnd.oasis")


@contextmanager
def text_of(file: BufferedReader, where: str, newline: str | None = None) -> Iterator[TextIO]:
    """Read a file as UTF-8; raises DataError if it is not UTF-8 or not text."""
    try:
        start = file.peek(4)[:4096]
        mark = next((name for sign, name in _MARKS.items() if start.startswith(sign)), None)
        if mark or b"\0" in start:
            raise DataError(f"{where} is {_other_text(start, mark)}")
        if is_web_page(start):
            raise DataError(f"{where} is a web page; download the file itself")
        with TextIOWrapper(file, encoding="utf-8-sig", newline=newline) as text_file:
            yield text_file
    except UnicodeDecodeError as error:
        if packed_as(start):
            raise DataError(f"{where} is {_other_text(start, None)}") from error
        raise DataError(
            f"{where} is not UTF-8 text: {error.reason}; if it is Windows-1252 or Latin-1, "
            f"{_AS_UTF8.format('WINDOWS-1252')}"
        ) from error
    except (OSError, EOFError) as error:
        raise DataError(f"{where} cannot be read: {error}") from error


_AS_UTF8 = "save it as UTF-8 (iconv -f {} -t UTF-8 FILE > NEW)"


def packed_as(start: bytes) -> str | None:
    """Return how a file that begins like this is packed, or None."""
    return next((name for sign, name in _PACKED.items() if start.startswith(sign)), None)


def _other_text(start: bytes, mark: str | None) -> str:
    """Return what a file is that is not UTF-8; every other byte of UTF-16 is mostly zero."""
    packing = packed_as(start)
    if packing == "zip" and any(part in start for part in _OFFICE):
        return "a spreadsheet or another document of an office program; save it as CSV"
    if packing and not mark:
        return f"packed ({packing}); unpack it, or end its name in one of {', '.join(PACKINGS)}"
    share = start.count(0) / len(start)
    order = "LE" if start[1::2].count(0) > start[::2].count(0) else "BE"
    if mark is None and 0.3 < share < 0.8:
        mark = f"UTF-16{order}" if share < 0.6 else f"UTF-32{order}"
    return f"{mark}; {_AS_UTF8.format(mark)}" if mark else "not text: it contains zero bytes"


BATCH_ROWS = 1000
_BATCH_CHARACTERS = 16 * 2**20  # JSON may take twenty times its characters

Row = dict[str, Any]


class Nested(bytes):
    """An object or list within a row, as its JSON: never a text or a label.

    As a column it would have a field for every name that occurs anywhere in it.
    """


def lines_of(file: TextIO, where: str) -> Iterator[tuple[int, str]]:
    """Yield lines and their numbers from 1; raises DataError for one of over `LINE` characters."""
    limit = LINE.value
    # readline with a limit: a file without line breaks must not be read whole
    for number, line in enumerate(iter(lambda: file.readline(limit), ""), 1):
        if len(line) >= limit:
            raise LINE.exceeded(
                f"{where}: line {number} has {limit:,} characters or more; is that one text?",
                limit,
            )
        yield number, line.rstrip("\n")


def check_names(names: Iterable[str], where: str) -> None:
    """Raise DataError for two columns of one name: which of them is meant cannot be known."""
    listed = list(names)
    twice = next((name for name, count in Counter(listed).items() if count > 1), None)
    if twice is not None:
        raise DataError(
            f"{where}: {listed.count(twice)} columns are called {twice[:40]!r}; give each a name "
            "of its own"
        )


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object from its pairs; raises DataError for a name that is given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        check_names((name for name, _ in pairs), "an object of JSON")
    return found


FIRST_LINE = {b"recipe_ray_names": b"first line"}  # of a table's schema: it has a header line


def in_batches(
    rows: Iterable[tuple[Row, int]], where: str, *, named: bool = False
) -> Iterator[pa.RecordBatch]:
    """Yield rows, each with its number of characters, as record batches; absent values are null.

    `named`: their names are in the file's first line. Raises DataError for more columns than
    `COLUMNS`, and a column whose values do not fit together.
    """
    limit, held = COLUMNS.value, 0
    some: list[Row] = []
    names: dict[str, None] = {}
    metadata = FIRST_LINE if named else None
    for count, (row, characters) in enumerate(rows, 1):
        names.update(dict.fromkeys(row))
        if len(names) > limit:
            COLUMNS.check(len(names), f"{where}: the table by row {count}")
        some.append(row)
        held += characters
        if len(some) == BATCH_ROWS or held >= _BATCH_CHARACTERS:
            yield _batch(some, list(names), where, metadata)
            some, names, held = [], {}, 0
    if some:
        yield _batch(some, list(names), where, metadata)


def _batch(
    rows: list[Row], names: list[str], where: str, metadata: dict[bytes, bytes] | None
) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [_array([row.get(name) for row in rows], name, where) for name in names]
    try:
        return pa.RecordBatch.from_arrays(columns, names=names, metadata=metadata)
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: a column's name is not Unicode: {error.reason}") from error


def _array(values: list[Any], name: str, where: str) -> Any:
    import pyarrow as pa

    try:
        return pa.array(values)
    except pa.ArrowException as error:
        kinds = ", ".join(sorted({type(value).__name__.lower() for value in values}))
        raise DataError(f"{where}: column {name[:40]!r} mixes kinds of values: {kinds}") from error
    except OverflowError as error:
        raise DataError(f"{where}: column {name[:40]!r} has a number of over 64 bits") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: column {name[:40]!r} is not Unicode: {error.reason}") from error
