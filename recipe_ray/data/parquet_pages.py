"""What a Parquet file unpacks to, counted from the headers of its pages before any is unpacked.

A page of a few bytes may stand for gigabytes. The reader allocates what a page's header says, so
the headers are counted; the file's footer is only a summary. The footer is read here, too: pyarrow
ends the process (SIGABRT) at one whose columns contradict themselves. Layout: parquet-format,
`FileMetaData` and `PageHeader`, in Thrift's compact protocol.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, BinaryIO, NamedTuple

from recipe_ray.base.errors import DataError

_HEADER_LIMIT = 16 * 2**20  # bytes of a page's header, as in Arrow
_DICTIONARY_PAGE = 2
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_WIDTH = 8  # the most bytes of a number, except decimals
# numbers of fields: of FileMetaData, RowGroup, ColumnChunk and ColumnMetaData
_ROW_GROUPS, _COLUMNS, _META = 4, 1, 3
_ENCODINGS, _PATH, _PACKED, _DATA_START, _DICTIONARY_START = 2, 3, 7, 9, 11
_DELTA_BYTE_ARRAY = 7
_TAIL = 8  # bytes after the footer: its length, and PAR1
# what bytes that are no Thrift, or not of these fields, lead to
_NONSENSE = (
    *(IndexError, ValueError, KeyError, TypeError, AttributeError, RecursionError),
    *(OverflowError, struct.error, OSError),
)


class Page(NamedTuple):
    """A page's kind, its bytes unpacked, and how many values it holds."""

    is_dictionary: bool
    unpacked: int
    values: int


@dataclass(frozen=True)
class Column:
    """What one column of one row group unpacks to."""

    name: str
    pages: tuple[Page, ...]
    builds_on_others: bool  # DELTA_BYTE_ARRAY: a value repeats the start of the one before

    @property
    def largest_page(self) -> int:
        """Bytes of the largest page."""
        return max((page.unpacked for page in self.pages), default=0)

    @property
    def largest_value(self) -> int:
        """Bytes that a value may have; for plain pages the highest mean of a page."""
        shared = [p.unpacked for p in self.pages if p.is_dictionary or self.builds_on_others]
        means = (page.unpacked // max(1, page.values) for page in self.pages)
        return max([_WIDTH, *shared, *means])

    @property
    def unpacked(self) -> int:
        """Bytes of all values, each of a dictionary's taken to be as long as their mean."""
        words = [page for page in self.pages if page.is_dictionary]
        mean = sum(p.unpacked for p in words) // max(1, sum(p.values for p in words))
        values = sum(page.values for page in self.pages if not page.is_dictionary)
        return sum(page.unpacked for page in self.pages) + values * mean


def columns_of(file: BufferedReader, where: str) -> Iterator[Column]:
    """Yield every column of every row group of an open Parquet file.

    Raises DataError for a footer, or a page whose header makes no sense.
    """
    try:
        groups = _footer(file)[_ROW_GROUPS]
        chunks = [chunk[_META] for group in groups for chunk in group[_COLUMNS]]
    except _NONSENSE as error:
        raise DataError(f"{where} cannot be read as Parquet: its footer is damaged") from error
    for chunk in chunks:
        name = "?"
        try:
            name = b".".join(chunk[_PATH]).decode(errors="replace")
            starts = [chunk[_DATA_START], chunk.get(_DICTIONARY_START) or 0]
            start = min(offset for offset in starts if offset > 0) if any(starts) else 0
            pages = tuple(_pages(file, start, start + chunk[_PACKED]))
        except _NONSENSE as error:
            raise DataError(
                f"{where} cannot be read as Parquet: column {name[:40]!r} has a page without a "
                "proper header"
            ) from error
        yield Column(name, pages, _DELTA_BYTE_ARRAY in chunk.get(_ENCODINGS, ()))


def _footer(file: BufferedReader) -> dict[int, Any]:
    size = os.fstat(file.fileno()).st_size
    file.seek(size - _TAIL)
    (length,) = struct.unpack("<I4x", file.read(_TAIL))
    file.seek(max(0, size - _TAIL - length))
    return _Compact(file.read(length)).struct()


def _pages(file: BinaryIO, at: int, end: int) -> Iterator[Page]:
    while at < end:
        header, length = _header(file, at, end)
        unpacked, packed = header[2], header[3]
        if min(unpacked, packed) < 0:
            raise ValueError("a page of negative length")
        about = header.get(5) or header.get(7) or header.get(8) or {}
        values = max(0, about.get(1, 0))
        yield Page(header[1] == _DICTIONARY_PAGE, unpacked, values)
        at += length + packed


def _header(file: BinaryIO, at: int, end: int) -> tuple[dict[int, Any], int]:
    size = 256
    while True:
        file.seek(at)
        content = file.read(min(size, end - at))
        reader = _Compact(content)
        try:
            return reader.struct(), reader.at
        except IndexError:
            if size >= _HEADER_LIMIT or len(content) == end - at:
                raise
            size *= 16


class _Compact:
    """Thrift's compact protocol, as far as page headers use it; IndexError at the end of bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.at = 0

    def struct(self) -> dict[int, Any]:
        """Return the fields of a struct by their numbers."""
        fields: dict[int, Any] = {}
        number = 0
        while kind_and_step := self._byte():
            step, kind = kind_and_step >> 4, kind_and_step & 15
            number = number + step if step else self._zigzag()
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind == _STRUCT:
            return self.struct()
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind in (_LIST, _SET):
            size_and_kind = self._byte()
            size = self._varint() if size_and_kind >> 4 == 15 else size_and_kind >> 4
            # at least one byte per element, so that an invented size ends at the end of the bytes
            return [self._value(size_and_kind & 15) for _ in range(size)]
        lengths = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}
        return self._bytes(self._varint() if kind == _BINARY else lengths[kind])

    def _bytes(self, length: int) -> bytes:
        self.at += length
        if self.at > len(self._content):
            raise IndexError(self.at)
        return self._content[self.at - length : self.at]

    def _byte(self) -> int:
        self.at += 1
        return self._content[self.at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
