"""Tables in text: CSV and TSV, with the names of the columns in the first line, and JSON.

CSV follows RFC 4180; its separator is a comma, or the tab or semicolon of a header without commas.
TSV is the form in which NLP data sets are published (`sentence<TAB>label`): fields are unchanged,
and a quote is a character of the text. A TSV whose header is quoted is read like a CSV.
JSON is one object per line (.jsonl), or a .json file with a list of objects or such lines.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from io import BufferedReader
from itertools import chain
from typing import TYPE_CHECKING, Any, TextIO

from recipe_ray.base.errors import DataError
from recipe_ray.base.limits import COLUMNS, LINE
from recipe_ray.data.content import Nested, Row, distinct, in_batches, lines_of, text_of

if TYPE_CHECKING:
    import pyarrow as pa

_SEPARATORS = (",", "\t", ";", "|")
_SPREADSHEET = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # a first line that says the separator


def read_csv(file: BufferedReader, where: str) -> Iterator[pa.RecordBatch]:
    """Stream a CSV; raises DataError for rows that do not have the header's fields."""
    with text_of(file, where, newline="") as text:
        lines = _Lines(text, where)
        yield from in_batches(_rows(_csv(lines, where), lines, where), where, named=True)


def read_tsv(file: BufferedReader, where: str) -> Iterator[pa.RecordBatch]:
    """Stream a TSV; raises DataError for rows that do not have the header's fields."""
    with text_of(file, where, newline="\n") as text:
        lines = _Lines(text, where)
        yield from in_batches(_rows(_tsv(lines, where), lines, where), where, named=True)


class _Lines(Iterator[str]):
    """Lines of a text that count the characters of the row that is being read.

    A row in quotes may have many lines, so a limit on lines would not bound it.
    """

    def __init__(self, text: TextIO, where: str) -> None:
        self._text, self._where = text, where
        self._limit = LINE.value
        self._held = 0
        self.row = 0  # the last that was read whole; the header is row 0

    def __next__(self) -> str:
        line = self._text.readline(self._limit)
        self._held += len(line)
        if self._held >= self._limit:
            raise LINE.exceeded(
                f"{self._where}: row {self.row + 1} has {self._limit:,} characters or more",
                self._limit,
            )
        if not line:
            raise StopIteration
        return line

    def taken(self) -> int:
        """Return the characters since the row before."""
        held, self._held = self._held, 0
        return held


def _csv(lines: _Lines, where: str) -> Iterator[list[str]]:
    header = next((line for line in lines if line.strip()), "")
    said = _SPREADSHEET.fullmatch(header)
    if said:
        header = next((line for line in lines if line.strip()), "")
    separator = said[1] if said else next((sign for sign in _SEPARATORS if sign in header), ",")
    return _quoted(chain([header], lines), separator, lines, where)


def _quoted(text: Iterator[str], separator: str, lines: _Lines, where: str) -> Iterator[list[str]]:
    csv.field_size_limit(LINE.value)
    try:
        yield from csv.reader(text, delimiter=separator, strict=True)
    except csv.Error as error:
        raise DataError(f"{where}: not valid CSV after row {lines.row}: {error}") from error


def _tsv(lines: _Lines, where: str) -> Iterator[list[str]]:
    header = next((line for line in lines if line.strip()), "")
    names = header.rstrip("\r\n").split("\t")
    if all(len(name) > 1 and name[0] == name[-1] == '"' for name in names):
        return _quoted(chain([header], lines), "\t", lines, where)
    return (
        [_as_meant(field) for field in line.rstrip("\r\n").split("\t")]
        for line in chain([header], lines)
    )


def _as_meant(field: str) -> str:
    # only a writer of CSV can have made a field such as "a ""quoted"" word"
    inner = field[1:-1]
    if field[:1] == field[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', ""):
        return inner.replace('""', '"')
    return field


def tsv_as_meant(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows of a TSV with unchanged fields, those that CSV quoted with their meaning."""
    import pyarrow as pa

    for place, column in enumerate(batch.columns):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            meant = [None if one is None else _as_meant(one) for one in column.to_pylist()]
            batch = batch.set_column(place, batch.schema.field(place), pa.array(meant, column.type))
    return batch


def _rows(table: Iterator[list[str]], lines: _Lines, where: str) -> Iterator[tuple[Row, int]]:
    names = next(table, [])
    COLUMNS.check(len(names), f"{where}: the header")
    if len(set(names)) < len(names):
        raise DataError(
            f"{where}: the header has {len(names)} names, but only {len(set(names))} different "
            "ones; is the first line a header? Each column needs a name of its own"
        )
    lines.taken()
    empty = 0  # rows of separators only: a spreadsheet leaves them at the end
    for values in table:
        length = lines.taken()
        if not any(value.strip() for value in values):
            empty += len(values) == len(names)  # with fewer it is a blank line
            continue
        for _ in range(empty):
            lines.row += 1
            yield dict.fromkeys(names, ""), 0
        empty = 0
        lines.row += 1
        if len(values) != len(names):
            raise DataError(
                f"{where}: row {lines.row} has {len(values)} fields, the header {len(names)}"
            )
        yield dict(zip(names, values, strict=True)), length


_PIECE = 65_536  # characters read at once


def read_json_lines(file: BufferedReader, where: str) -> Iterator[pa.RecordBatch]:
    """Stream one object per line; blank lines are skipped."""
    with text_of(file, where) as text:
        numbered = ((n, line) for n, line in lines_of(text, where) if line.strip())
        yield from in_batches(
            ((_line(line, number, where), len(line)) for number, line in numbered), where
        )


def _line(line: str, number: int, where: str) -> Row:
    try:
        found = json.loads(line, object_pairs_hook=distinct)
    except DataError as error:
        raise DataError(f"{where}: line {number}: {error}") from None
    except (ValueError, RecursionError) as error:  # also an endless number or nesting
        raise DataError(f"{where}: line {number} is not JSON: {error}") from error
    return _row(found, f"{where}: line {number}")


def read_json(file: BufferedReader, where: str) -> Iterator[pa.RecordBatch]:
    """Stream a list of objects, or objects one after the other."""
    with text_of(file, where) as text:
        yield from in_batches(_objects(_Scanner(text, where), where), where)


def _objects(scanner: _Scanner, where: str) -> Iterator[tuple[Row, int]]:
    in_list = scanner.peek() == "["
    if in_list:
        scanner.skip()
    number, row = 0, {}
    while scanner.peek() not in ("", "]"):
        number += 1
        value, length = scanner.value(number)
        row = _row(value, f"{where}: item {number}")
        if number > 1 or in_list or not _is_whole_table(row):
            yield row, length
        if in_list and scanner.peek() == ",":
            scanner.skip()
        elif in_list and scanner.peek() != "]":
            raise DataError(f"{where}: after item {number}: expected , or ]")
    if number == 1 and not in_list and _is_whole_table(row):
        raise DataError(
            f"{where} is one object ({len(row)} fields), not rows; save a list of objects, one per "
            "row (in pandas: to_json(..., orient='records'))"
        )
    if in_list and not scanner.peek():
        raise DataError(f"{where}: the list does not end; is the file cut off?")
    if in_list:
        scanner.skip()
    if scanner.peek():
        raise DataError(f"{where}: there is more after item {number}")


def _is_whole_table(row: Row) -> bool:
    return all(isinstance(value, Nested) for value in row.values())


def _row(found: Any, where: str) -> Row:
    if not isinstance(found, dict):
        raise DataError(f"{where} is a {type(found).__name__}, not an object")
    try:
        return {
            name: Nested(json.dumps(value).encode()) if isinstance(value, (dict, list)) else value
            for name, value in found.items()
        }
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply") from error


class _Scanner:
    """JSON values of a text, one after the other; only one of them is held."""

    def __init__(self, text: TextIO, where: str) -> None:
        self._text, self._where = text, where
        self._held, self._at = "", 0
        self._decoder = json.JSONDecoder(object_pairs_hook=distinct)

    def peek(self) -> str:
        """Return the next character that is not white space, or nothing at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at].isspace():
                self._at += 1
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._more(_PIECE):
                return ""

    def skip(self) -> None:
        """Go to the next character."""
        self._at += 1

    def value(self, number: int) -> tuple[Any, int]:
        """Return the next value, and its length; raises DataError for what is not a value."""
        limit = LINE.value
        while True:
            try:
                found, end = self._decoder.raw_decode(self._held, self._at)
            except DataError as error:
                raise DataError(f"{self._where}: item {number}: {error}") from None
            except (ValueError, RecursionError) as error:
                held = len(self._held) - self._at
                if held > limit:
                    raise LINE.exceeded(
                        f"{self._where}: item {number} is not JSON or has over {limit:,} "
                        "characters",
                        limit,
                    ) from error
                if isinstance(error, RecursionError) or not self._more(max(_PIECE, held)):
                    raise DataError(f"{self._where}: item {number} is not JSON") from error
                continue
            length, self._at = end - self._at, end
            return found, length

    def _more(self, characters: int) -> bool:
        self._held, self._at = self._held[self._at :], 0
        piece = self._text.read(characters)
        self._held += piece
        return bool(piece)
