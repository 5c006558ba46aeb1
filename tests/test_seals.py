"""A flipped bit in result rows or plans is noticed, and the files stay plain Parquet and JSON."""

import io
import json
import random
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_samples import clean, por
from shell import Shell, shell
from tiny_cell import finished

from recipe_ray.base.errors import StoreError
from recipe_ray.experiment.collect import collect
from recipe_ray.experiment.plan import Plan
from recipe_ray.store.rows import (
    SEAL,
    decode_rows,
    encode_rows,
    result_schema,
    sealed_json,
    unsealed_json,
)
from recipe_ray.store.store import Store

__all__ = ["finished", "shell"]  # fixtures


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_flipped_bit_of_a_file_of_rows_is_noticed_before_it_is_parsed() -> None:
    data = encode_rows(por())
    tail = 8 * (len(data) - 600)  # where the checksum and its name are: every bit of it
    for bit in [*range(0, tail, 7), *range(tail, len(data) * 8)]:
        with pytest.raises(StoreError, match=r"place/k1\.parquet: damaged or edited"):
            decode_rows(flipped(data, bit), "place/k1.parquet")


def test_every_flipped_bit_of_a_plan_is_noticed() -> None:
    plan: dict[str, Any] = {"experiment": "x", "stages": {"k1": {"seed": 0}}}
    data = sealed_json(plan)
    assert unsealed_json(data, "plan.json", "") == plan
    for bit in range(len(data) * 8):
        with pytest.raises(StoreError, match=r"plan\.json: damaged"):
            unsealed_json(flipped(data, bit), "plan.json", "")


@pytest.mark.parametrize("cut", [0, 1, 100, -1, -40, -300])
def test_a_file_cut_short_or_grown_is_noticed(cut: int) -> None:
    data = encode_rows(por())
    for changed in (data[:cut], data + b"\0"):
        with pytest.raises(StoreError, match="damaged"):
            decode_rows(changed, "k1.parquet")


def filled(folder: Path) -> Store:
    store = Store.open(folder)
    tables = {"p0": por(), "p1": por("p1", seed=1), "c0": clean()}
    for stage, table in tables.items():
        store.write_results("table1", stage, table)
    plan = {"experiment": "table1", "paper": None, "cells": [], "stages": dict.fromkeys(tables)}
    store.write_plan("table1", plan)
    return store


@pytest.mark.parametrize(
    ("place", "file", "advice"),
    [
        ("store", "store/results/table1/p0.parquet", "start the same sweep or search again"),
        ("store", "store/plans/table1.json", "start the same sweep or search again"),
        ("kept", "kept/table1/rows.parquet", "export it again"),
        ("kept", "kept/table1/plan.json", "export it again"),
        ("kept/table1/rows.parquet", "kept/table1/rows.parquet", "export it again"),
    ],
)
def test_a_report_names_the_damaged_file_and_what_to_do(
    shell: Shell, place: str, file: str, advice: str
) -> None:
    filled(shell.folder / "store")
    shell("report", "store", "--export", "kept")
    data, bits = Path(file).read_bytes(), random.Random(17)
    for _ in range(20):
        Path(file).write_bytes(flipped(data, bits.randrange(len(data) * 8)))
        said = shell.fails("report", place, "--json")
        assert f"{file}: damaged" in said
        assert advice in said
    Path(file).write_bytes(data)
    assert shell("report", place, "--json").code == 0


def test_the_same_command_again_writes_a_damaged_file_anew(finished: tuple[Plan, Store]) -> None:
    plan, store = finished
    stage = plan.cells[0].last
    collect(plan, store, stage)
    before = store.results(plan.name)
    file = Path(store.uri) / "results" / plan.name / f"{stage.key}.parquet"
    file.write_bytes(flipped(file.read_bytes(), 4000))
    with pytest.raises(StoreError, match="damaged"):
        store.results(plan.name)
    file.unlink()
    collect(plan, store, stage)
    assert store.results(plan.name).equals(before)


def test_an_exported_folder_reports_the_same_and_exports_the_same_bytes(shell: Shell) -> None:
    filled(shell.folder / "store")
    whole = shell("report", "store", "--export", "kept", "--json")
    again = shell("report", "kept", "--export", "again", "--json")
    assert again.out == whole.out
    for name in ("plan.json", "rows.parquet"):
        assert Path("kept/table1", name).read_bytes() == Path("again/table1", name).read_bytes()


def test_what_older_versions_wrote_is_read_and_not_rewritten(shell: Shell) -> None:
    store = filled(shell.folder / "store")
    whole = shell("report", "store", "--json").out
    for file in (shell.folder / "store" / "results" / "table1").iterdir():
        table = decode_rows(file.read_bytes(), file.name)
        assert table.schema.metadata == {b"recipe_ray_schema_version": b"2"}
        pq.write_table(table, file)  # as before there were checksums
    plan = shell.folder / "store" / "plans" / "table1.json"
    plan.write_text(json.dumps(store.plan("table1")))
    before = {file: file.read_bytes() for file in shell.folder.rglob("*.*") if file.is_file()}
    assert not any(SEAL.encode() in data for data in before.values())
    assert shell("report", "store", "--json").out == whole
    assert {file: file.read_bytes() for file in before} == before


def test_an_older_file_with_a_text_that_is_no_text_is_named(tmp_path: Path) -> None:
    broken = pa.array([b"\xff\xfe"], pa.binary()).view(pa.string())
    columns = {
        name: pa.nulls(1, result_schema().field(name).type) for name in result_schema().names
    }
    table = pa.table({**columns, "experiment": broken}, schema=result_schema())
    pq.write_table(table, tmp_path / "k1.parquet")
    with pytest.raises(StoreError, match=r"k1\.parquet: damaged"):
        decode_rows((tmp_path / "k1.parquet").read_bytes(), "k1.parquet")


def test_others_read_the_rows_as_any_parquet(tmp_path: Path) -> None:
    filled(tmp_path)
    file = tmp_path / "results" / "table1" / "p0.parquet"
    assert pq.read_table(file).equals(por())
    assert pq.read_table(file).schema.equals(result_schema())
    query = f"select value from '{file}' where metric = 'masr'"
    assert duckdb.sql(query).fetchall() == [(0.8,)]
    assert pq.read_table(tmp_path / "results").num_rows == 2 * por().num_rows + clean().num_rows


def test_rows_read_and_written_again_carry_the_checksum_of_what_they_are_now() -> None:
    again = encode_rows(decode_rows(encode_rows(por()), "k1.parquet").slice(0, 2))
    assert decode_rows(again, "k1.parquet").equals(por().slice(0, 2))
    # a seal in the metadata of a table that others read is not taken for its own
    foreign = pq.read_table(io.BytesIO(encode_rows(por()))).slice(0, 2)
    assert decode_rows(encode_rows(foreign), "k1.parquet").num_rows == 2
    sink = io.BytesIO()
    pq.write_table(foreign, sink)
    with pytest.raises(StoreError, match="damaged or edited"):
        decode_rows(sink.getvalue(), "k1.parquet")
