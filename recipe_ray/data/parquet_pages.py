"""What the pages of a Parquet file unpack to, read from their headers before any is unpacked.

A page of a few bytes may stand for gigabytes: it repeats a dictionary's value, or is compressed.
The reader allocates what a page's header says, so that is what is counted; the file's footer is
only a summary. Layout: parquet-format, `PageHeader` in Thrift's compact protocol.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

from recipe_ray.base.errors import DataError

_HEADER_LIMIT = 16 * 2**20  # bytes of a page's header, as in Arrow
_DICTIONARY_PAGE = 2
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_WIDTH = 8  # bytes of a number, at most but for decimals


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
        """Bytes that a value may come to; for plain pages the highest mean of a page."""
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


def columns_of(file: BinaryIO, metadata: Any, where: str) -> Iterator[Column]:
    """Yield every column of every row group of an open Parquet file.

    `metadata` is the file's `pyarrow.parquet.FileMetaData`. Raises DataError for a page whose
    header makes no sense.
    """
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(number)
            starts = [chunk.dictionary_page_offset or 0, chunk.data_page_offset]
            start = min(offset for offset in starts if offset > 0) if any(starts) else 0
            try:
                pages = tuple(_pages(file, start, start + chunk.total_compressed_size))
            except (IndexError, ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(
                    f"{where} cannot be read as Parquet: column {chunk.path_in_schema[:40]!r} has "
                    "a page without a proper header"
                ) from error
            yield Column(chunk.path_in_schema, pages, "DELTA_BYTE_ARRAY" in chunk.encodings)


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
            # one byte an element at least, so that a size out of thin air ends at the bytes' end
            return [self._value(size_and_kind & 15) for _ in range(size)]
        lengths = {_TRUE: 1, _FALSE: 1, _BYTE: 1, _DOUBLE: 8}
        self._pass(self._varint() if kind == _BINARY else lengths[kind])
        return None

    def _pass(self, length: int) -> None:
        self.at += length
        if self.at > len(self._content):
            raise IndexError(self.at)

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
