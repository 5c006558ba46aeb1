"""Tables that a reader could misunderstand, or that end a process, are refused by name."""

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import raised_by

from recipe_ray.base.errors import DataError
from recipe_ray.data.arrow_tables import read_arrow, read_parquet
from recipe_ray.data.parquet_pages import columns_of
from recipe_ray.data.text_tables import read_csv, read_json, read_json_lines, read_tsv

Reader = Callable[..., Any]
PLAIN = pa.table({"text": ["a b", "c"], "label": [0, 1]})
TWICE = pa.table([pa.array(["a"]), pa.array([0]), pa.array(["b"])], names=["text", "label", "text"])
WITHIN = pa.table({"text": ["a"], "x": pa.StructArray.from_arrays([pa.array([1])] * 2, ["i", "i"])})


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def as_arrow(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def said_of(read: Reader, data: bytes, folder: Path) -> str:
    """Return the message at which a reader stops."""
    file = folder / "table"
    file.write_bytes(data)

    def run() -> None:
        with file.open("rb") as opened:
            for batch in read(opened, "place"):
                batch.to_pylist()

    return raised_by(run)


OBJECT = '{"text": "a", "label": 1, "text": "b"}'
DOUBLED: dict[str, tuple[Reader, bytes]] = {
    "parquet": (read_parquet, as_parquet(TWICE)),
    "arrow": (read_arrow, as_arrow(TWICE)),
    "parquet, in a struct": (read_parquet, as_parquet(WITHIN)),
    "arrow, in a struct": (read_arrow, as_arrow(WITHIN)),
    "csv": (read_csv, b"text,label,text\na,1,b\n"),
    "tsv": (read_tsv, b"text\tlabel\ttext\na\t1\tb\n"),
    "json lines": (read_json_lines, OBJECT.encode()),
    "json": (read_json, f"[{OBJECT}]".encode()),
    "json, in a value": (read_json, b'[{"text": "a", "x": {"i": 1, "i": 2}}]'),
}


@pytest.mark.parametrize(("read", "data"), DOUBLED.values(), ids=DOUBLED)
def test_two_columns_of_one_name_are_refused(read: Reader, data: bytes, tmp_path: Path) -> None:
    assert "name" in said_of(read, data, tmp_path)


def renamed(data: bytes) -> bytes:
    """Return a file whose column is called by bytes that are not UTF-8."""
    return data.replace(b"label", b"la\xff\xfel")


NOT_TEXT: dict[str, tuple[Reader, bytes]] = {
    "parquet, a name": (read_parquet, renamed(as_parquet(PLAIN))),
    "arrow, a name": (read_arrow, renamed(as_arrow(PLAIN))),
    "csv": (read_csv, b"text,label\ncaf\xe9,1\n"),
    "tsv": (read_tsv, b"text\tlabel\ncaf\xe9\t1\n"),
    "json lines": (read_json_lines, b'{"text": "caf\xe9"}\n'),
    "json lines, half a character": (read_json_lines, b'{"text": "\\ud800"}\n'),
    "json lines, in a name": (read_json_lines, b'{"te\\ud800xt": "a"}\n'),
    "json": (read_json, b'[{"text": "caf\xe9"}]'),
}


@pytest.mark.parametrize(("read", "data"), NOT_TEXT.values(), ids=NOT_TEXT)
def test_bytes_that_are_no_text_are_told_with_the_place(
    read: Reader, data: bytes, tmp_path: Path
) -> None:
    assert said_of(read, data, tmp_path).startswith("place")


def test_the_columns_of_a_parquet_file_are_counted_as_its_reader_counts_them(
    tmp_path: Path,
) -> None:
    file = tmp_path / "table.parquet"
    many = pa.table({"text": ["a b"] * 500, "x": [{"deep": [1, 2]}] * 500})
    pq.write_table(many, file, row_group_size=100)
    metadata = pq.ParquetFile(file).metadata
    with file.open("rb") as opened:
        counted = list(columns_of(opened, ""))
    found = [(one.name, sum(page.unpacked for page in one.pages)) for one in counted]
    known = [
        metadata.row_group(group).column(number)
        for group in range(metadata.num_row_groups)
        for number in range(metadata.num_columns)
    ]
    assert [name for name, _ in found] == [one.path_in_schema for one in known]
    for (_, unpacked), one in zip(found, known, strict=True):
        # what the footer says includes the headers
        assert 0 < unpacked <= one.total_uncompressed_size


@pytest.mark.parametrize("place", range(0, 400, 7))
def test_no_byte_of_a_footer_can_end_the_process(place: int, tmp_path: Path) -> None:
    whole = bytearray(as_parquet(PLAIN))
    if place < len(whole) - 12:
        whole[-12 - place] ^= 0x5A
    file = tmp_path / "table"
    file.write_bytes(whole)
    with file.open("rb") as opened, suppress(DataError):  # or it is read, with other values
        for batch in read_parquet(opened, "place"):
            json.dumps(batch.to_pylist(), default=str)
