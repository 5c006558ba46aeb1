"""Parquet files and Arrow streams, counted before they are unpacked, as batches of plain columns.

Either may hold values that repeat (dictionaries, views) or are compressed, and an Arrow file may
hold offsets that lead out of its memory. What leaves this module is checked, bounded and plain.
"""

import mmap
import struct
from collections.abc import Iterator
from io import BufferedReader
from os import fstat
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recipe_ray.base.errors import DataError
from recipe_ray.base.limits import BATCH, COLUMNS, UNPACKED, unpacked_limit
from recipe_ray.data.parquet_pages import columns_of
from recipe_ray.data.row_batches import BATCH_ROWS

_VIEW = 16  # bytes of one entry of a view, of which the first four are its length
_FILE_MAGIC = b"ARROW1"
_FILE_START = 8


def read_parquet(file: BufferedReader, where: str) -> Iterator[pa.RecordBatch]:
    """Stream a Parquet file; raises DataError for one that is damaged or unpacks to too much."""
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
    try:
        # mapped, so that a length out of thin air ends at the file's end and allocates nothing
        content = pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        if content.slice(0, len(_FILE_MAGIC)).to_pybytes() == _FILE_MAGIC:
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


def _check_uncompressed(content: pa.Buffer, where: str) -> None:
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
    """Return where a table's field stands, 0 if it has none."""
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
    words = column.dictionary
    is_long = pa.types.is_string(words.type) or pa.types.is_binary(words.type)
    is_long |= pa.types.is_large_string(words.type) or pa.types.is_large_binary(words.type)
    if not is_long:
        return int(len(column) * max(1, words.nbytes // max(1, len(words))))
    lengths = pc.cast(pc.binary_length(words), pa.int64())
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0)


def _is_view(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def _repeats(kind: pa.DataType) -> bool:
    """Tell whether values of a type may share memory, at any depth."""
    shares = pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind) or _is_view(kind)
    shares |= pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    if shares:
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return _repeats(kind.storage_type)
    return any(_repeats(kind.field(number).type) for number in range(kind.num_fields))


def _plain_column(column: Any) -> Any:
    if pa.types.is_dictionary(column.type):
        return column.dictionary_decode()
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string())
    if pa.types.is_binary_view(column.type):
        return column.cast(pa.large_binary())
    return column
