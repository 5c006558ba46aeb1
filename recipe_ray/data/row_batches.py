"""Rows that are read one by one, as record batches of bounded rows, characters and columns.

Errors give the row but never its text: a data set may hold what nobody wants in a log.
"""

from collections.abc import Iterable, Iterator
from typing import Any, TextIO

import pyarrow as pa

from recipe_ray.base.errors import DataError
from recipe_ray.base.limits import COLUMNS, LINE

BATCH_ROWS = 1000
_BATCH_CHARACTERS = 16 * 2**20  # JSON may take twenty times its characters

Row = dict[str, Any]


class Nested(bytes):
    """An object or list within a row, as its JSON: neither a text nor a label, whatever it holds.

    Built as a column it would have a field for every name that occurs anywhere in it.
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


def in_batches(rows: Iterable[tuple[Row, int]], where: str) -> Iterator[pa.RecordBatch]:
    """Yield rows, each with its number of characters, as record batches; absent values are null.

    Raises DataError for a file that is not UTF-8 or cannot be unpacked, more columns than
    `COLUMNS`, and a column of values that do not go together.
    """
    limit, count, held = COLUMNS.value, 0, 0
    some: list[Row] = []
    names: dict[str, None] = {}
    try:
        for row, characters in rows:
            count += 1
            names.update(dict.fromkeys(row))
            if len(names) > limit:
                COLUMNS.check(len(names), f"{where}: the table by row {count}")
            some.append(row)
            held += characters
            if len(some) == BATCH_ROWS or held >= _BATCH_CHARACTERS:
                yield _batch(some, list(names), where)
                some, names, held = [], {}, 0
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 text: {error.reason}") from error
    except (OSError, EOFError) as error:
        raise DataError(f"{where} cannot be read: {error}") from error
    if some:
        yield _batch(some, list(names), where)


def _batch(rows: list[Row], names: list[str], where: str) -> pa.RecordBatch:
    columns = [_array([row.get(name) for row in rows], name, where) for name in names]
    return pa.RecordBatch.from_arrays(columns, names=names)


def _array(values: list[Any], name: str, where: str) -> Any:
    try:
        return pa.array(values)
    except pa.ArrowException as error:
        kinds = ", ".join(sorted({type(value).__name__.lower() for value in values}))
        raise DataError(f"{where}: column {name[:40]!r} mixes kinds of values: {kinds}") from error
    except OverflowError as error:
        raise DataError(f"{where}: column {name[:40]!r} has a number of over 64 bits") from error
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: column {name[:40]!r} is not Unicode: {error.reason}") from error
