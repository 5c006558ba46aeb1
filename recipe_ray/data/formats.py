"""The file formats of tables, by the endings of their names, each streamed.

A reader takes an open file and how to name it in messages. Its errors give the row but never the
text of it: a data set may hold what nobody wants in a log.

Labels as files write them: numbers, numbers in writing, true and false.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_ray.data.arrow_tables import read_arrow, read_parquet
from recipe_ray.data.content import PACKINGS, in_batches, lines_of, packing_of
from recipe_ray.data.text_tables import read_csv, read_json, read_json_lines, read_tsv

if TYPE_CHECKING:
    import pyarrow as pa


def _read_text(file: BufferedReader, where: str) -> Iterator[pa.RecordBatch]:
    with TextIOWrapper(file, encoding="utf-8-sig") as text:
        rows = (({"text": line}, len(line)) for _, line in lines_of(text, where))
        yield from in_batches(rows, where)


@dataclass(frozen=True)
class Reader:
    """A format's name, as it stands in identities, and how a file of it is streamed."""

    format: str
    read: Callable[[BufferedReader, str], Iterator[pa.RecordBatch]]
    is_text: bool = True  # then a file of it may be packed


READERS = {
    ".parquet": Reader("parquet", read_parquet, is_text=False),
    ".csv": Reader("csv", read_csv),
    ".jsonl": Reader("jsonl", read_json_lines),
    ".txt": Reader("text", _read_text),
    ".tsv": Reader("tsv", read_tsv),
    ".json": Reader("json", read_json),
    ".ndjson": Reader("jsonl", read_json_lines),
    ".arrow": Reader("arrow", read_arrow, is_text=False),
}
ALLOWED = f"{', '.join(READERS)} (those of text also with {', '.join(PACKINGS)})"


def ending(file: Path) -> str:
    """Return what says a file's format, in lower case: `.csv`, or `.csv.gz` for a packed one."""
    if packing_of(file) is None:
        return file.suffix.lower()
    return Path(file.stem).suffix.lower() + file.suffix.lower()


def reader_of(file: Path) -> Reader | None:
    """Return how a file is read, by its name, or None for one in no format that is known."""
    packing = packing_of(file)
    reader = READERS.get(Path(file.stem if packing else file.name).suffix.lower())
    return None if reader is None or (packing and not reader.is_text) else reader


_WRITTEN = re.compile(r"[0-9]{1,18}(\.0*)?")
_TRUTH = {"true": 1, "false": 0}


def label_number(value: Any) -> int | None:
    """Return the number that a label is, or None for one that is no whole number from 0.

    Programs that write tables turn 1 into `1.0` (pandas, if a value is missing) or `True`.
    """
    if isinstance(value, str):
        written = value.strip()
        if _WRITTEN.fullmatch(written):
            return int(written.partition(".")[0])
        return _TRUTH.get(written.lower())
    if isinstance(value, float):
        return int(value) if value.is_integer() and value >= 0 else None
    return int(value) if isinstance(value, int) and value >= 0 else None
