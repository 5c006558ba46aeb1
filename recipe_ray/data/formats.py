"""The file formats of text tables: Parquet, CSV, JSON lines and plain lines, each streamed.

A reader takes a file and how to name it in messages. Its errors give the row but never the text
of it: a data set may hold what nobody wants in a log.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from recipe_ray.base.errors import DataError

BATCH_ROWS = 1000
LINE_LIMIT = 8_000_000  # characters read at most for one line or CSV field

Row = dict[str, Any]


@dataclass(frozen=True)
class Reader:
    """A format's name, as it stands in identities, and how a file of it is streamed."""

    format: str
    read: Callable[[Path, str], Iterator[pa.RecordBatch]]


def _read_parquet(file: Path, where: str) -> Iterator[pa.RecordBatch]:
    try:
        with pq.ParquetFile(file) as table:
            yield from table.iter_batches(batch_size=BATCH_ROWS, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where} cannot be read as Parquet: {error}") from error


def _read_csv(file: Path, where: str) -> Iterator[pa.RecordBatch]:
    csv.field_size_limit(LINE_LIMIT)
    with _opened(file, where, newline="") as lines:
        rows = csv.reader(lines, strict=True)
        yield from _batches(_csv_rows(rows, where), where)


def _csv_rows(rows: Iterator[list[str]], where: str) -> Iterator[Row]:
    number = 0  # of the row last read; the header is row 0
    try:
        names = next(rows, [])
        for number, values in enumerate(rows, 1):
            if len(values) != len(names):
                raise DataError(
                    f"{where}: row {number} has {len(values)} fields, the header {len(names)}"
                )
            yield dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise DataError(f"{where}: not valid CSV after row {number}: {error}") from error


def _read_json_lines(file: Path, where: str) -> Iterator[pa.RecordBatch]:
    with _opened(file, where) as lines:
        objects = (_json_row(line, row, where) for row, line in _lines(lines, where))
        yield from _batches((found for found in objects if found is not None), where)


def _json_row(line: str, row: int, where: str) -> Row | None:
    if not line.strip():
        return None
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:  # also a number, or nesting, without end
        raise DataError(f"{where}: line {row} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{where}: line {row} is a {type(found).__name__}, not an object")
    return found


def _read_text(file: Path, where: str) -> Iterator[pa.RecordBatch]:
    with _opened(file, where) as lines:
        yield from _batches(({"text": line} for _, line in _lines(lines, where)), where)


READERS = {
    ".parquet": Reader("parquet", _read_parquet),
    ".csv": Reader("csv", _read_csv),
    ".jsonl": Reader("jsonl", _read_json_lines),
    ".txt": Reader("text", _read_text),
}


def _opened(file: Path, where: str, newline: str | None = None) -> TextIO:
    try:
        return file.open(encoding="utf-8-sig", newline=newline)
    except OSError as error:
        raise DataError(f"{where} cannot be opened: {error.strerror}") from error


def _lines(file: TextIO, where: str) -> Iterator[tuple[int, str]]:
    # readline with a limit: a file without line breaks must not be read whole
    for row, line in enumerate(iter(lambda: file.readline(LINE_LIMIT), ""), 1):
        if len(line) == LINE_LIMIT:
            raise DataError(
                f"{where}: line {row} has {LINE_LIMIT:,} characters or more; is it one text a line?"
            )
        yield row, line.rstrip("\n")


def _batches(rows: Iterable[Row], where: str) -> Iterator[pa.RecordBatch]:
    remaining = iter(rows)
    try:
        while some := list(islice(remaining, BATCH_ROWS)):
            names = list(dict.fromkeys(name for row in some for name in row))
            columns = [_array([row.get(name) for row in some], name, where) for name in names]
            yield pa.RecordBatch.from_arrays(columns, names=names)
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error.reason}") from error


def _array(values: list[Any], name: str, where: str) -> Any:
    try:
        return pa.array(values)
    except pa.ArrowException as error:
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise DataError(f"{where}: column {name!r} mixes kinds of values: {kinds}") from error
    except OverflowError as error:
        raise DataError(f"{where}: column {name!r} has a number of over 64 bits") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: column {name!r} is not Unicode: {error.reason}") from error
