"""Result rows: one row per measured value, Parquet, one schema with a version.

A stage measures `Measurement`s and knows nothing of experiments or cells; `result_rows` adds those
columns when an experiment collects its results.

Two kinds of files carry their own checksum: result rows (Parquet) and plans (JSON). A field holds
the SHA-256 of the whole file, taken while the field's digits were zeros. So the check needs neither
a second file nor the file's structure, nothing damaged is parsed, and the format does not change:
DuckDB and pandas read the Parquet as before. Files that were written before this, and those of
others, have no such field and are not checked. It protects against damage, not against somebody who
also replaces the checksum.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from recipe_ray.base.errors import DamagedError, StoreError
from recipe_ray.store.manifest import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

SEAL = "recipe_ray_sha256"  # the field's name
OPEN_SEAL = "sha256:" + "0" * 64  # its value before it is known
_DIGITS = re.compile(rb"sha256:([0-9a-f]{64})")


def sealed(data: bytes) -> bytes:
    """Return a file's bytes with the checksum in the place of OPEN_SEAL, which they hold last."""
    start = data.rindex(OPEN_SEAL.encode())
    digits = hashlib.sha256(data).hexdigest()
    return data[:start] + f"sha256:{digits}".encode() + data[start + len(OPEN_SEAL) :]


def check_seal(data: bytes, shown: str, repair: str) -> None:
    """Raise DamagedError, which names the file and the repair, if a sealed file was changed.

    Every flipped bit is noticed: a flip in the field's name leaves its value, and the reverse.
    """
    *_, last = [None, *_DIGITS.finditer(data)]
    if last is None and SEAL.encode() not in data:
        return
    if last is not None:
        blank = data[: last.start()] + OPEN_SEAL.encode() + data[last.end() :]
        if hashlib.sha256(blank).hexdigest().encode() == last[1]:
            return
    raise DamagedError(
        f"{shown}: damaged or edited: its checksum is not the one written with it; {repair}"
    )


def sealed_json(value: dict[str, Any]) -> bytes:
    """Return an object as JSON that carries its checksum."""
    return sealed((json.dumps({**value, SEAL: OPEN_SEAL}, indent=1) + "\n").encode())


def unsealed_json(data: bytes, shown: str, repair: str) -> dict[str, Any]:
    """Return the object that was sealed; raise DamagedError naming the file if it is damaged."""
    check_seal(data, shown, repair)
    value = parse_json(data, shown)
    value.pop(SEAL, None)
    return value


SCHEMA_VERSION = 2  # 1 had no column `comparison`, and is still read

_VERSION_FIELD = b"recipe_ray_schema_version"
_MARK_FIELD = b"recipe_ray_collected_for"
_ALWAYS = ("stage", "kind", "metric", "value")  # what every row has
_LARGEST = 1e100  # of any number in rows
_MAKE_ANEW = "delete it and make it again"


@cache
def measurement_schema() -> pa.Schema:
    """Return the columns of one stage's rows."""
    import pyarrow as pa

    string, whole, number = pa.string(), pa.int64(), pa.float64()
    fields = [
        pa.field("stage", string),  # key of the stage that measured it
        pa.field("kind", string),
        pa.field("model", string),
        pa.field("attack", string),  # "none" for a clean PTM
        pa.field("defense", string),  # "none" for no defense
        pa.field("aux", string),
        pa.field("aux_size", whole),
        pa.field("weight_factor", number),
        pa.field("seed", whole),  # the seed of this stage
        pa.field("sample_seed", whole),  # of the auxiliary sample
        pa.field("task", string),
        pa.field("epoch", whole),  # epochs of purification (snapshots) or of this stage's training
        # shared by fine-tunings that differ only in what was done to the PTM, triggers and seed
        pa.field("comparison", string),
        pa.field("metric", string),  # acc, asr, aasr, masr, loss.<term>, ...
        pa.field("trigger", string),
        pa.field("label", whole),
        pa.field("value", number),
        pa.field("numerator", number),
        pa.field("denominator", number),
        pa.field("wall_s", number),  # of the whole stage
        pa.field("world_size", whole),
        pa.field("versions", string),  # JSON: library versions
        pa.field("git_commit", string),
        pa.field("time", pa.timestamp("us", tz="UTC")),
    ]
    return pa.schema(fields, metadata={_VERSION_FIELD: str(SCHEMA_VERSION).encode()})


@cache
def result_schema() -> pa.Schema:
    """Return the columns of an experiment's rows: those of its stages, with experiment and cell."""
    import pyarrow as pa

    own = [pa.field("experiment", pa.string()), pa.field("cell", pa.string())]
    schema = measurement_schema()
    return pa.schema([*own, *schema], metadata=schema.metadata)


@dataclass(frozen=True)
class Measurement:
    """One measured value; None if a column does not apply."""

    metric: str
    value: float
    epoch: int | None = None
    trigger: str | None = None
    label: int | None = None
    numerator: float | None = None
    denominator: float | None = None


def measurement_table(measured: Iterable[Measurement], common: dict[str, Any]) -> pa.Table:
    """Return the rows of one stage; `common` holds the columns that all its rows share.

    Values of a measurement itself (not None) come before `common`.

    Raises ValueError for a column that the schema does not have.
    """
    import pyarrow as pa

    schema = measurement_schema()
    strange = set(common) - set(schema.names)
    if strange:
        raise ValueError(f"no such result columns: {sorted(strange)}")
    rows = [{**common, **_given(measurement)} for measurement in measured]
    return pa.Table.from_pylist(rows, schema=schema)


def _given(measurement: Measurement) -> dict[str, Any]:
    return {name: value for name, value in asdict(measurement).items() if value is not None}


def result_rows(stage_rows: pa.Table, experiment: str, cells: list[str | None]) -> pa.Table:
    """Return a stage's rows once for each cell; None means a stage that cells share."""
    import pyarrow as pa

    tables = []
    for cell in cells:
        count = stage_rows.num_rows
        tables.append(
            stage_rows.add_column(0, "cell", pa.array([cell] * count, pa.string())).add_column(
                0, "experiment", pa.array([experiment] * count, pa.string())
            )
        )
    return pa.concat_tables(tables).cast(result_schema())


def encode_rows(table: pa.Table) -> bytes:
    """Return rows as the bytes of a Parquet file that carries the schema version and a checksum."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    own = {_VERSION_FIELD: str(SCHEMA_VERSION).encode(), SEAL.encode(): OPEN_SEAL.encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata({**(table.schema.metadata or {}), **own}), sink)
    return sealed(bytes(sink.getvalue()))


def _is_absurd(column: pa.ChunkedArray) -> bool:
    import pyarrow.compute as pc

    size = pc.abs(column)
    # infinite and NaN are told by what shows them; a sum of these would overflow
    found = pc.any(pc.and_(pc.greater(size, _LARGEST), pc.is_finite(size)))
    return bool(found.as_py())


def marked(table: pa.Table, mark: str) -> pa.Table:
    """Return rows with a mark of what they were collected for, which their file will carry."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _MARK_FIELD: mark})


def mark_of(data: bytes, shown: str) -> str | None:
    """Return the mark in a Parquet file's bytes, None if it has none or is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        check_seal(data, shown, _MAKE_ANEW)
        metadata = pq.read_schema(pa.BufferReader(data)).metadata or {}
    except (DamagedError, pa.ArrowException, OSError):
        return None
    found = metadata.get(_MARK_FIELD)
    return found.decode(errors="replace") if found is not None else None


def decode_rows(data: bytes, shown: str, repair: str = _MAKE_ANEW) -> pa.Table:
    """Return the rows in a Parquet file's bytes, `shown` naming the file in errors.

    Raises StoreError, which says `repair`, if the file is damaged or of another schema version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_seal(data, shown, repair)
    try:
        # without its threads: a process that ends just after they began may abort at its end
        table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        table.validate(full=True)  # texts that are not UTF-8, in a file without a checksum
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(
            f"{shown}: damaged, not a readable Parquet file ({error}); {repair}"
        ) from error
    found = (table.schema.metadata or {}).get(_VERSION_FIELD, b"none").decode(errors="replace")
    if found not in ("1", str(SCHEMA_VERSION)):
        raise StoreError(
            f"{shown}: result schema version {found}; this program reads version {SCHEMA_VERSION} "
            "and 1. Use the recipe-ray version that wrote it, or another store"
        )
    lacking = [name for name in _ALWAYS if name not in table.column_names]
    lacking += [name for name in _ALWAYS if name not in lacking and table[name].null_count]
    if lacking:
        raise StoreError(f"{shown}: damaged: rows without {', '.join(lacking)}; {repair}")
    if found == "1":
        table = _of_schema_1(table, shown, repair)
    for name in table.column_names:
        if pa.types.is_floating(table[name].type) and _is_absurd(table[name]):
            raise StoreError(f"{shown}: damaged: {name} beyond {_LARGEST:g}; {repair}")
    own = (SEAL.encode(), _MARK_FIELD)
    kept = {name: value for name, value in table.schema.metadata.items() if name not in own}
    return table.replace_schema_metadata(kept)


def _of_schema_1(table: pa.Table, shown: str, repair: str) -> pa.Table:
    """Return rows of schema version 1 with the column `comparison`, in today's order.

    What may be compared was then decided by the report: fine-tunings of one model on one task in
    one experiment. A stage's own rows name no experiment, so they are compared with none.
    """
    import pyarrow as pa

    schema = measurement_schema()
    apart = "experiment" if "experiment" in table.column_names else "stage"
    names = [name for name in schema.names if name != "comparison"]
    if lacking := [name for name in names if name not in table.column_names]:
        raise StoreError(f"{shown}: damaged: rows without {', '.join(lacking)}; {repair}")
    sets = [table[name].to_pylist() for name in (apart, "model", "task")]
    compared = [
        json.dumps(["schema 1", *one]) if one[-1] is not None else None
        for one in zip(*sets, strict=True)
    ]
    added = table.append_column("comparison", pa.array(compared, pa.string()))
    whole = result_schema() if apart == "experiment" else schema
    try:
        return added.select(whole.names).cast(whole)
    except (KeyError, pa.ArrowException) as error:
        raise StoreError(f"{shown}: not rows of schema version 1 ({error}); {repair}") from error
