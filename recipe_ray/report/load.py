"""Where results are read from: a store, or a folder or file of rows kept from one.

A kept folder holds `<experiment>/plan.json` and `<experiment>/rows.parquet`: one file, while a
store has one per stage. It reads back as the store did. Somebody else may have made it, so its
files are opened as foreign ones: no pipe, no link out of the folder, no endless file.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.base.errors import SpecError, StoreError, unknown
from recipe_ray.base.foreign import is_there, read_foreign
from recipe_ray.base.paths import path_part
from recipe_ray.base.spec import explained
from recipe_ray.experiment.spec import Paper
from recipe_ray.stages.stage import STAGES
from recipe_ray.store.notes import checked_plan
from recipe_ray.store.rows import (
    SEAL,
    decode_rows,
    encode_rows,
    result_schema,
    sealed_json,
    unsealed_json,
)
from recipe_ray.store.store import Store

PLAN, ROWS = "plan.json", "rows.parquet"
_LARGEST = 2**30  # bytes of one file: a grid of 20,000 cells has a tenth of it
_EXPORT_AGAIN = "export it again (recipe-ray report STORE --export FOLDER)"


@dataclass(frozen=True)
class Recorded:
    """An experiment's rows (`result_schema`) and its plan, None if only rows were kept."""

    experiment: str
    rows: pa.Table
    plan: dict[str, Any] | None

    @property
    def paper(self) -> Paper | None:
        """The paper's table that it reproduces."""
        declared = self.plan.get("paper") if self.plan is not None else None
        with explained(f"the plan of {self.experiment}: paper"):
            return Paper.model_validate(declared) if declared is not None else None


def planned(results: pa.Table, stages: Collection[str]) -> pa.Table:
    """Return the rows of stages that an experiment's present plan has (those of old ones stay)."""
    return results.filter(pc.is_in(results["stage"], pa.array(list(stages), pa.string())))


def recorded(place: str) -> list[Recorded]:
    """Return the experiments of a store, of a kept folder, or of one Parquet file, by name.

    Raises StoreError if there is nothing at `place` or a file in it cannot be read.
    """
    path = Path(place)
    if "://" in place:
        return _of_store(Store.open(place))
    if is_there(path) and not path.is_dir():
        return _of_rows([path], None)  # links may lead anywhere: the user named it
    if not path.is_dir():
        raise StoreError(
            f"no store at {place}; give the folder or URI that --store was given, a folder that "
            "report --export wrote, or a Parquet file of result rows"
        )
    # if something else than a file is there, it is not skipped: opening it is refused
    folders = [path, *sorted(one for one in path.glob("*") if one.is_dir())]
    kept = [folder for folder in folders if is_there(folder / ROWS)]
    if kept:
        return [one for folder in kept for one in _of_rows([folder / ROWS], path)]
    files = sorted(path.glob("*.parquet"))
    return _of_rows(files, path) if files else _of_store(Store.open(place))


def narrowed(found: Iterable[Recorded], column: str, values: Collection[str]) -> list[Recorded]:
    """Return the experiments with the rows whose `column` has one of these values, as text.

    The clean PTM's rows stay, for they are the floor of the rest. Raises SpecError if there is no
    such column, or no row has one of the values.
    """
    every = list(found)
    names = [field.name for field in result_schema() if field.name not in ("metric", "value")]
    if column not in names:
        raise SpecError("--only: " + unknown("column", column, names))
    cast = [one.rows[column].cast(pa.string()) for one in every]
    known = {value for own in cast for value in pc.unique(own).to_pylist() if value is not None}
    if strange := [value for value in values if value not in known]:
        raise SpecError(f"--only {column}: " + unknown("value", strange[0], sorted(known)))
    kept = []
    for one, own in zip(every, cast, strict=True):
        clean = pc.and_(pc.equal(one.rows["attack"], "none"), pc.equal(one.rows["defense"], "none"))
        chosen = pc.is_in(own, pa.array(sorted(values), pa.string()))
        kept.append(replace(one, rows=one.rows.filter(pc.or_kleene(chosen, clean))))
    return kept


def store_at(place: str) -> Store | None:
    """Return the store at a place that was read by `recorded`, None if only rows were kept."""
    whole = "://" in place or any((Path(place) / kind).is_dir() for kind in STAGES)
    return Store.open(place) if whole else None


def export(found: Iterable[Recorded], folder: Path) -> list[Path]:
    """Write each experiment's plan and rows below `folder`; return the files.

    Raises StoreError, before anything is written, if the name of an experiment is not valid.
    """
    written = []
    for one, name in [(one, path_part(one.experiment, "experiment name")) for one in found]:
        own = folder / name
        own.mkdir(parents=True, exist_ok=True)
        files = {ROWS: encode_rows(one.rows)}
        if one.plan is not None:
            files[PLAN] = sealed_json(one.plan)
        for file, data in files.items():
            (own / file).write_bytes(data)
            written.append(own / file)
    return written


def _of_store(store: Store) -> list[Recorded]:
    return [_present(name, store.results(name), store.plan(name)) for name in store.experiments()]


def _of_rows(files: Iterable[Path], within: Path | None) -> list[Recorded]:
    listed = list(files)
    tables = [decode_rows(_content(file, within), str(file), _EXPORT_AGAIN) for file in listed]
    for file, table in zip(listed, tables, strict=True):
        if not table.schema.equals(result_schema()):
            raise StoreError(f"{file}: not result rows of an experiment: {table.column_names}")
        if table["experiment"].null_count:
            raise StoreError(f"{file}: not result rows of an experiment: a row names no experiment")
    rows = pa.concat_tables(tables)
    names = sorted(pc.unique(rows["experiment"]).to_pylist())
    plans = {name: _plan_beside(listed[0], within, name) for name in names}
    return [
        _present(name, rows.filter(pc.equal(rows["experiment"], name)), plans[name])
        for name in names
    ]


def _content(file: Path, within: Path | None) -> bytes:
    return read_foreign(file, _LARGEST, within=within, error=StoreError)


def _plan_beside(file: Path, within: Path | None, experiment: str) -> dict[str, Any] | None:
    beside = file.with_name(PLAN)
    if not is_there(beside):
        return None
    repair = f"{_EXPORT_AGAIN}, or remove its field {SEAL} if the edit is your own"
    content = _content(beside, within or file.parent)
    plan = checked_plan(unsealed_json(content, str(beside), repair), str(beside))
    return plan if plan.get("experiment") == experiment else None


def _present(name: str, rows: pa.Table, plan: dict[str, Any] | None) -> Recorded:
    return Recorded(name, rows if plan is None else planned(rows, plan["stages"]), plan)
