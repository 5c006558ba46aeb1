"""Parquet files and Arrow streams, counted before they are unpacked, as batches of plain columns.

Both may hold values that repeat (dictionaries, views) or are compressed, and an Arrow file may
hold offsets that lead out of its memory. What leaves this module is checked, bounded and plain.

What a Parquet file unpacks to is counted first (`parquet_pages.py`).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from io import BufferedReader
from os import fstat, pread
from typing import TYPE_CHECKING, Any

from recipe_ray.base.errors import DataError
from recipe_ray.base.foreign import kind_by_start
from recipe_ray.base.limits import BATCH, COLUMNS, UNPACKED, unpacked_limit
from recipe_ray.data.content import BATCH_ROWS, check_names
from recipe_ray.data.parquet_pages import columns_of

if TYPE_CHECKING:
    import pyarrow as pa

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
            rows = _rows_at_once(file, where)
            for batch in table.iter_batches(batch_size=rows, use_threads=False):
                yield plain(batch, where)
    # ValueError: also of bytes that are no UTF-8, and of a name twice
    except (pa.ArrowException, OSError, MemoryError, ValueError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} cannot be read as Parquet: {error}") from error


def _rows_at_once(file: BufferedReader, where: str) -> int:
    limit = unpacked_limit(fstat(file.fileno()).st_size)
    largest: dict[str, int] = {}
    whole = 0
    for column in columns_of(file, where):
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

    _check_fields(list(batch.schema), where)
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


def _check_fields(fields: list[Any], where: str) -> None:
    """Raise DataError for a name twice, at any depth; ValueError for a name that is not UTF-8."""
    check_names((field.name for field in fields), where)
    for field in fields:
        kind = field.type
        inner = [kind.field(number) for number in range(kind.num_fields)]
        if inner:
            _check_fields(inner, where)


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
