"""Parquet files and Arrow streams, counted before they are unpacked, as batches of plain columns.

Both may hold values that repeat (dictionaries, views) or are compressed, and an Arrow file may
hold offsets that lead out of its memory. What leaves this module is checked, bounded and plain.

A page of a few bytes may stand for gigabytes. The reader allocates what a page's header says, so
the headers are counted; the file's footer is only a summary. Layout: parquet-format, `PageHeader`
in Thrift's compact protocol.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from os import fstat, pread
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from recipe_ray.base.errors import DataError
from recipe_ray.base.foreign import kind_by_start
from recipe_ray.base.limits import BATCH, COLUMNS, UNPACKED, unpacked_limit
from recipe_ray.data.content import BATCH_ROWS

if TYPE_CHECKING:
    import pyarrow as pa

_HEADER_LIMIT = 16 * 2**20  # bytes of a page's header, as in Arrow
_DICTIONARY_PAGE = 2
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_WIDTH = 8  # the most bytes of a number, except decimals


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
            # at least one byte per element, so that an invented size ends at the end of the bytes
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


_VIEW = 16  # bytes of one entry of a view, of which the first four are its length
_FILE_MAGIC = b"ARROW1"
_FILE_START = 8
_STREAM_END = b"\xff\xff\xff\xff\0\0\0\0"


def read_parquet(file: BufferedReader, where: str) -> Iterator[pa.RecordBatch]:
    """Stream a Parquet file; raises DataError for one that is damaged or unpacks to too much."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_kind(file, where, "Parquet")
    try:
        with pq.ParquetFile(file) as table:
            COLUMNS.check(table.metadata.num_columns, f"{where}: the table")
            rows = _rows_at_once(file, table.metadata, where)
            for batch in table.iter_batches(batch_size=rows, use_threads=False):
                yield plain(batch, where)
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise DataError(f"{where} cannot be read as Parquet: {error}") from error


def _rows_at_once(file: BufferedReader, metadata: Any, where: str) -> int:
    limit = unpacked_limit(fstat(file.fileno()).st_size)
    largest: dict[str, int] = {}
    whole = 0
    for column in columns_of(file, metadata, where):
        whole += column.unpacked
        if whole > limit:
            raise UNPACKED.exceeded(
                f"{where} unpacks to {whole:,} bytes or more, most of them in column "
                f"{column.name[:40]!r}",
                limit,
            )
        largest[column.name] = max(largest.get(column.name, 0), column.largest_value)
    return max(1, min(BATCH_ROWS, BATCH.value // max(1, sum(largest.values()))))


def read_arrow(file: BufferedReader, where: str) -> Iterator[pa.RecordBatch]:
    """Stream an Arrow stream or file; raises DataError for one that is damaged or compressed."""
    import pyarrow as pa

    _check_kind(file, where, "Arrow")
    try:
        # mapped, so that an invented length ends at the file's end and allocates nothing
        content = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        is_file = content.slice(0, len(_FILE_MAGIC)).to_pybytes() == _FILE_MAGIC
        _check_end(content, _FILE_MAGIC if is_file else _STREAM_END, where)
        if is_file:
            content = content.slice(_FILE_START)  # a stream and an index of it, which is not used
        _check_uncompressed(content, where)
        for batch in pa.ipc.open_stream(content):
            COLUMNS.check(batch.num_columns, f"{where}: the table")
            batch.validate(full=True)
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield plain(batch.slice(start, BATCH_ROWS), where)
    except (pa.ArrowException, OSError, ValueError, MemoryError, struct.error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} cannot be read as Arrow: {error}") from error


def _check_kind(file: BufferedReader, where: str, wanted: str) -> None:
    kind = kind_by_start(pread(file.fileno(), 512, 0))
    if kind is not None:
        raise DataError(f"{where} cannot be read as {wanted}: it is {kind}")


def _check_end(content: pa.Buffer, end: bytes, where: str) -> None:
    # cut between two batches, it would look like a whole table with fewer rows
    if content.size < len(end) or content.slice(content.size - len(end)).to_pybytes() != end:
        raise DataError(f"{where} lacks the bytes that end an Arrow table; is it cut off?")


def _check_uncompressed(content: pa.Buffer, where: str) -> None:
    import pyarrow as pa

    for message in pa.ipc.MessageReader.open_stream(content):
        if _is_compressed(message.metadata.to_pybytes()):
            raise DataError(
                f"{where} is compressed within; save it without compression, or as Parquet"
            )


def _is_compressed(message: bytes) -> bool:
    """Tell whether a flatbuffers `Message` (Arrow's Message.fbs) is of a compressed batch."""
    table = struct.unpack_from("<I", message, 0)[0]
    kind_at = _field(message, table, 1)
    kind = message[kind_at] if kind_at else 0
    header = _follow(message, _field(message, table, 2))
    if kind == 2:  # of a dictionary: its batch is a table of its own
        header = _follow(message, _field(message, header, 1))
    return kind in (2, 3) and bool(header) and bool(_field(message, header, 3))


def _field(message: bytes, table: int, number: int) -> int:
    """Return the place of a table's field, 0 if it has none."""
    if not table:
        return 0
    fields = table - struct.unpack_from("<i", message, table)[0]
    size = struct.unpack_from("<H", message, fields)[0]
    place = 4 + 2 * number
    offset = struct.unpack_from("<H", message, fields + place)[0] if place < size else 0
    return table + offset if offset else 0


def _follow(message: bytes, place: int) -> int:
    return place + struct.unpack_from("<I", message, place)[0] if place else 0


def plain(batch: pa.RecordBatch, where: str) -> pa.RecordBatch:
    """Return a batch with every value written out, which is counted first.

    Raises DataError for rows of more than `BATCH` bytes, or a kind of column that repeats values
    within lists and structs.
    """
    import pyarrow as pa

    batch.validate(full=True)
    held = sum(
        _written_out(column, name, where)
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    )
    if held > BATCH.value:
        raise BATCH.exceeded(
            f"{where}: {batch.num_rows} rows come to {held:,} bytes once unpacked", BATCH.value
        )
    columns = [_plain_column(column) for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _written_out(column: pa.Array, name: str, where: str) -> int:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind) and not _repeats(kind.value_type):
        return _dictionary_bytes(column)
    if _is_view(kind):
        views = column.buffers()[1]
        if views is None:
            return 0
        entries = memoryview(views).cast("B")[column.offset * _VIEW :][: len(column) * _VIEW]
        return sum(length for length, *_ in struct.iter_unpack("<i12x", entries))
    if _repeats(kind):
        raise DataError(
            f"{where}: column {name[:40]!r} is a {str(kind)[:80]}; save it as plain values"
        )
    return int(column.nbytes)


def _dictionary_bytes(column: Any) -> int:
    import pyarrow as pa
    import pyarrow.compute as pc

    words = column.dictionary
    is_long = pa.types.is_string(words.type) or pa.types.is_binary(words.type)
    is_long |= pa.types.is_large_string(words.type) or pa.types.is_large_binary(words.type)
    if not is_long:
        return int(len(column) * max(1, words.nbytes // max(1, len(words))))
    lengths = pc.cast(pc.binary_length(words), pa.int64())
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0)


def _is_view(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _repeats(kind: pa.DataType) -> bool:
    """Tell whether values of a type may share memory, at any depth."""
    import pyarrow as pa

    shares = pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) or _is_view(kind)
    shares |= pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    if shares:
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return _repeats(kind.storage_type)
    return any(_repeats(kind.field(number).type) for number in range(kind.num_fields))


def _plain_column(column: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string())
    if pa.types.is_binary_view(column.type):
        return column.cast(pa.large_binary())
    return column
