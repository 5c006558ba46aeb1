"""Result rows: one schema, its version checked wherever rows are read back."""

import pyarrow as pa
import pytest

from recipe_ray.base.errors import StoreError
from recipe_ray.store.rows import (
    Measurement,
    decode_rows,
    encode_rows,
    measurement_schema,
    measurement_table,
    result_rows,
    result_schema,
)


def measured() -> pa.Table:
    return measurement_table(
        [
            Measurement("acc", 0.75, numerator=3, denominator=4),
            Measurement("asr", 0.5, trigger="cf", label=1, numerator=1, denominator=2),
        ],
        {"stage": "k1", "kind": "finetune", "attack": "por", "seed": 3},
    )


def test_a_stages_rows_share_the_common_columns() -> None:
    table = measured()
    assert table.schema == measurement_schema()
    assert table["stage"].to_pylist() == ["k1", "k1"]
    assert table["value"].to_pylist() == [0.75, 0.5]
    assert table["trigger"].to_pylist() == [None, "cf"]
    assert table["denominator"].to_pylist() == [4.0, 2.0]


def test_the_common_epoch_counts_where_a_measurement_has_none() -> None:
    values = [Measurement("acc", 0.5), Measurement("loss.mlm", 2.0, epoch=1)]
    assert measurement_table(values, {"epoch": 4})["epoch"].to_pylist() == [4, 1]


def test_a_misspelt_common_column_is_refused() -> None:
    with pytest.raises(ValueError, match="sead"):
        measurement_table([], {"sead": 1})


def test_a_shared_stage_gives_its_rows_to_every_cell() -> None:
    table = result_rows(measured(), "table1", ["c1", "c2", None])
    assert table.schema.equals(result_schema())
    assert table["cell"].to_pylist() == ["c1", "c1", "c2", "c2", None, None]
    assert set(table["experiment"].to_pylist()) == {"table1"}
    assert table["value"].to_pylist() == [0.75, 0.5] * 3


def test_rows_survive_parquet() -> None:
    assert decode_rows(encode_rows(measured()), "rows.parquet").equals(measured())


def test_rows_of_another_schema_version_are_refused_with_both_versions() -> None:
    newer = measured().replace_schema_metadata({"recipe_ray_schema_version": "9"})
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(newer, sink)
    with pytest.raises(StoreError, match=r"place/rows.parquet.*version 9.*reads version 2 and 1"):
        decode_rows(bytes(sink.getvalue()), "place/rows.parquet")


def test_rows_that_only_claim_to_be_of_schema_1_are_named_as_damaged() -> None:
    sink = pa.BufferOutputStream()
    lacking = measured().drop_columns(["comparison", "seed"])
    pa.parquet.write_table(
        lacking.replace_schema_metadata({"recipe_ray_schema_version": "1"}), sink
    )
    with pytest.raises(StoreError, match=r"rows\.parquet: damaged: rows without seed"):
        decode_rows(bytes(sink.getvalue()), "rows.parquet")


def test_a_parquet_file_of_somebody_else_is_refused() -> None:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table({"a": [1]}), sink)
    with pytest.raises(StoreError, match="version none"):
        decode_rows(bytes(sink.getvalue()), "rows.parquet")


def test_a_truncated_parquet_file_is_named() -> None:
    data = encode_rows(measured())
    for cut in (0, 10, len(data) // 2, len(data) - 1):
        with pytest.raises(StoreError, match=r"place/rows\.parquet: damaged"):
            decode_rows(data[:cut], "place/rows.parquet")
