"""The file formats of tables by the endings of their names, and labels as files write them.

A reader takes an open file and its name for messages. Its errors give the row number but never the
row's text: a data set may hold what nobody wants in a log.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from io import BufferedReader
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_ray.data.arrow_tables import read_arrow, read_parquet
from recipe_ray.data.content import PACKINGS, in_batches, lines_of, packing_of, text_of
from recipe_ray.data.text_tables import read_csv, read_json, read_json_lines, read_tsv

if TYPE_CHECKING:
    import pyarrow as pa


def _read_text(file: BufferedReader, where: str) -> Iterator[pa.RecordBatch]:
    with text_of(file, where) as text:
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


_OTHERS = (
    ((".xlsx", ".xls", ".ods", ".numbers"), "a spreadsheet; save it as CSV"),
    ((".zip", ".7z", ".rar", ".tar", ".tgz", ".xz", ".lz4"), "an archive or packed; unpack it"),
    ((".pkl", ".pickle", ".joblib", ".pt"), "a pickle, which is a program; save it as Parquet"),
    ((".npy", ".npz", ".h5", ".hdf5", ".mat", ".feather", ".orc", ".avro"), "save it as Parquet"),
    ((".db", ".sqlite", ".sqlite3"), "a database; save the table as CSV or Parquet"),
    ((".html", ".htm", ".xml"), "a page; download the data themselves"),
    ((".doc", ".docx", ".pdf", ".rtf", ".odt"), "a document; save its text as .txt or .csv"),
)


def no_format(file: Path) -> str:
    """Return, for people, that a file's name does not end like a format that is read."""
    end = ending(file)
    what = next((said for ends, said in _OTHERS if file.suffix.lower() in ends), None)
    known = f"format {end!r} is not one of" if end else "its name has none of the endings"
    said = f"{known} {ALLOWED}"
    return f"{file}: {said}" if what is None else f"{file}: {what} ({said})"


def ending(file: Path) -> str:
    """Return what says a file's format, in lower case: `.csv`, or `.csv.gz` for a packed one."""
    if packing_of(file) is None:
        return file.suffix.lower()
    return Path(file.stem).suffix.lower() + file.suffix.lower()


def reader_of(file: Path) -> Reader | None:
    """Return how a file is read, by its name, or None for one in an unknown format."""
    packing = packing_of(file)
    reader = READERS.get(Path(file.stem if packing else file.name).suffix.lower())
    return None if reader is None or (packing and not reader.is_text) else reader


_WHOLE = re.compile(r"[+-]?[0-9]{1,18}(\.0*)?")
_TRUTH = {"true": True, "false": False}


def label_of(value: Any) -> bool | int | str | None:
    """Return a label in one form, for every file format: a truth value, a whole number or a name.

    Programs that write tables turn 1 into `1.0` (pandas, if a value is missing) or `True`. None for
    what is not a label: nothing, a fraction, bytes.
    """
    if isinstance(value, str):
        written = value.strip()
        if _WHOLE.fullmatch(written):
            return int(written.partition(".")[0])
        return _TRUTH.get(written.lower(), written or None)
    if isinstance(value, (float, Decimal)):
        return int(value) if isfinite(value) and value == int(value) else None
    return value if isinstance(value, int) else None


def label_number(value: Any) -> int | None:
    """Return the whole number from 0 that a label is, true and false being 1 and 0, or None."""
    label = label_of(value)
    return int(label) if isinstance(label, int) and label >= 0 else None
