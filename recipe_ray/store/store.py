"""The store: every finished stage's artifact, what failed or is running, and result rows.

It is the ledger of a sweep: what is committed here is never done again, and nothing else needs to
survive a crash. It knows nothing of what stages do.

    <kind>/<label>-<key>/    an artifact: its files, rows.parquet, manifest.json
    failures/  progress/     JSON, one file per stage
    checkpoints/             one resume point per stage
    claims/                  which driver builds which stage (claims.py)
    results/<experiment>/    Parquet, one file per stage
    plans/                   JSON, one file per experiment
    drivers/                 JSON, one lease per driver (claims.py)
    tensorboard/             event files, one folder per stage (`tensorboard.py`)
    corpora/                 shards that DDP workers read (`distributed/data.py`)
    tmp/                     unfinished writes
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from recipe_ray.base.errors import StoreError
from recipe_ray.base.paths import expanded, path_part
from recipe_ray.store.claims import CLAIMS, DRIVERS, Claims, await_deletions
from recipe_ray.store.files import SCRATCH, Files
from recipe_ray.store.manifest import (
    LEFT_OUT,
    MANIFEST,
    ROWS,
    ArtifactId,
    parse_manifest,
    write_manifest,
)
from recipe_ray.store.notes import (
    FailureNote,
    ProgressNote,
    checked_plan,
    json_path,
    read_all,
    read_note,
    read_notes,
    write_note,
)
from recipe_ray.store.patience import explained
from recipe_ray.store.remote import open_files, reopen_files
from recipe_ray.store.rows import (
    decode_rows,
    encode_rows,
    mark_of,
    marked,
    measurement_schema,
    result_schema,
    sealed_json,
    unsealed_json,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ArtifactId", "Store"]

FAILURES, PROGRESS, CHECKPOINTS = "failures", "progress", "checkpoints"
RESULTS, PLANS = "results", "plans"
_BESIDE = {CLAIMS, DRIVERS, "corpora", "tensorboard"}  # folders of other modules
ROOMS = {FAILURES, PROGRESS, CHECKPOINTS, RESULTS, PLANS, SCRATCH, *_BESIDE}


class Store:
    """A store at one location; every failure of the location is a `StoreError`.

    Picklable: it is opened again from its `uri` on arrival, which must mean the same there.
    """

    def __init__(self, files: Files, uri: str) -> None:
        self._files, self.uri = files, uri

    @classmethod
    def open(cls, location: str | Path) -> Store:
        """Open a local folder (made if missing) or the URI of an object store.

        A read-only folder can be opened, so that reports work; the first write fails.
        """
        return cls(*open_files(location))

    def __reduce__(self) -> tuple[Callable[..., Store], tuple[str]]:
        return _reopened, (self.uri,)

    def __str__(self) -> str:
        return self._files.shown("")

    # --- artifacts

    def has(self, artifact: ArtifactId) -> bool:
        """Tell whether this kind and key is committed, whatever its label."""
        return self._located(artifact) is not None

    def find(self, kind: str, key: str) -> ArtifactId | None:
        """Return the committed artifact of this kind and key, None if there is none."""
        for name in self._files.names(kind):
            found = ArtifactId.from_folder(kind, name) if name.endswith(f"-{key}") else None
            if found and found.key == key and self._files.exists(f"{found.folder}/{MANIFEST}"):
                return found
        return None

    def committed(self) -> dict[str, ArtifactId]:
        """Return every committed artifact by key, from one listing per kind."""
        found: dict[str, ArtifactId] = {}
        for kind in self._files.names(""):
            # people may keep notes next to the artifacts
            if kind in ROOMS or not re.fullmatch(r"[A-Za-z0-9_]+", kind):
                continue
            for name in self._files.holding(kind, MANIFEST):
                artifact = ArtifactId.from_folder(kind, name)
                if artifact is not None:
                    found.setdefault(artifact.key, artifact)
        return found

    def check_free(self, artifact: ArtifactId) -> None:
        """Raise StoreError if something is in the way of an artifact or of its stage's notes."""
        notes = (FAILURES, PROGRESS, CHECKPOINTS, RESULTS)
        self._files.check_free(artifact.folder, notes)

    def commit(
        self,
        artifact: ArtifactId,
        folder: Path,
        manifest: dict[str, Any],
        rows: pa.Table | None = None,
    ) -> bool:
        """Publish a folder's files, the rows and the manifest as one immutable artifact.

        `folder` (see `local_scratch`) is consumed in any case. Returns False, discarding it,
        if the artifact is already there. The store adds to the manifest: kind, label, key,
        attempt, manifest_version, and `files` with size and SHA-256 of each.
        """
        if artifact.kind in ROOMS:
            raise ValueError(f"{artifact.kind!r} is a folder of the store, not a kind of artifact")
        try:
            landed = not self.has(artifact) and self._publish(artifact, folder, manifest, rows)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self._files.remove(json_path(FAILURES, artifact.key))
        self.clear_progress(artifact)
        return landed

    def fetch(self, artifact: ArtifactId) -> Path:
        """Return a local folder with the artifact's verified files, to be read only.

        A remote artifact is downloaded once, into RECIPE_RAY_CACHE (~/.cache/recipe-ray).
        Raises StoreError if it is not committed or a file is missing or altered.
        """
        found = self._committed(artifact)
        manifest = self.manifest(found)
        if manifest.get(LEFT_OUT):
            raise StoreError(
                f"{self._files.shown(found.folder)}: its model was left out when this store was "
                "exported. Export it again with --with-models, or delete this folder and start "
                "the same command again to make it again"
            )
        cache = expanded(os.environ.get("RECIPE_RAY_CACHE") or "~/.cache/recipe-ray")
        return self._files.fetch(found.folder, manifest, cache / "artifacts")

    def check(self, artifact: ArtifactId) -> None:
        """Raise StoreError if a committed artifact is not what was committed; read all of it."""
        manifest = self.manifest(artifact)
        said = (manifest.get("kind"), manifest.get("key"))
        if said != (artifact.kind, artifact.key):
            shown = self._files.shown(artifact.folder)
            raise StoreError(f"{shown}: its manifest is of {said[0]} {said[1]}; delete its folder")
        self._files.check(artifact.folder, manifest)

    def manifest(self, artifact: ArtifactId) -> dict[str, Any]:
        """Return a committed artifact's manifest; raise StoreError if missing or damaged."""
        path = f"{self._committed(artifact).folder}/{MANIFEST}"
        data = self._files.read(path)
        if data is None:
            raise StoreError(f"{self._files.shown(path)}: deleted while it was being read")
        return parse_manifest(data, self._files.shown(path))

    def rows(self, artifact: ArtifactId) -> pa.Table:
        """Return what the stage measured (`measurement_schema`), no rows if it measured nothing.

        Raises StoreError for a damaged file or another schema version.
        """
        found = self._committed(artifact)
        manifest = self.manifest(found)
        expected = manifest["files"].get(ROWS)
        if expected is None:
            return measurement_schema().empty_table()
        path = self._files.member(found.folder, str(manifest.get("attempt")), ROWS)
        data, shown = self._files.read(path), self._files.shown(path)
        if data is None:
            raise StoreError(f"{shown}: missing, although it was committed")
        if hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise StoreError(f"{shown}: checksum mismatch: the file was altered or cut short")
        return decode_rows(data, shown)

    def local_scratch(self) -> Path:
        """Return a new empty folder to build an artifact in, on the store's disk if local."""
        return self._files.scratch()

    def clear_scratch(self) -> None:
        """Delete the scratch folders that killed stages left, on this machine or mount."""
        self._files.clear_scratch()

    def claims(self, lease_s: float, told: Callable[[], dict[str, Any]] = dict) -> Claims:
        """Return a new driver's claims on stages; they expire `lease_s` seconds after its death.

        `told` returns what people see of the driver.
        """
        return Claims(self._files, lease_s, told)

    # --- failures, progress, checkpoints: one per stage, each replacing the one before

    def record_failure(self, artifact: ArtifactId, failure: dict[str, Any]) -> None:
        """Keep why a stage failed, until its next failure or its commit."""
        write_note(self._files, FAILURES, artifact, failure)

    def failures(self) -> dict[str, dict[str, Any]]:
        """Return the last failure of every failed stage by key, with its kind, label and time.

        A damaged note is named in the log and left out, as with `failure` and `progress`.
        """
        return read_notes(self._files, FAILURES, FailureNote)

    def failure(self, key: str) -> dict[str, Any] | None:
        """Return the last failure of one stage, None if it has none."""
        return read_note(self._files, FAILURES, key, FailureNote)

    def write_progress(self, artifact: ArtifactId, progress: dict[str, Any]) -> None:
        """Say how far a running stage is, for `status` in another terminal."""
        write_note(self._files, PROGRESS, artifact, progress)

    def progress(self) -> dict[str, dict[str, Any]]:
        """Return the progress of stages by key, with kind, label and time of writing.

        A killed stage leaves its last note: judge by `time`.
        """
        return read_notes(self._files, PROGRESS, ProgressNote)

    def clear_progress(self, artifact: ArtifactId) -> None:
        """Forget a stage's progress."""
        self._files.remove(json_path(PROGRESS, artifact.key))

    def write_checkpoint(self, key: str, data: bytes) -> None:
        """Replace a stage's resume point."""
        self._files.write(f"{CHECKPOINTS}/{key}", data)

    def read_checkpoint(self, key: str) -> bytes | None:
        """Return a stage's resume point, None if it has none."""
        return self._files.read(f"{CHECKPOINTS}/{key}")

    def drop_checkpoint(self, key: str) -> None:
        """Delete a stage's resume point."""
        self._files.remove(f"{CHECKPOINTS}/{key}")

    def checkpoints(self) -> dict[str, int]:
        """Return the bytes of every resume point by its stage's key."""
        return self._files.sizes(CHECKPOINTS)

    # --- experiments

    def write_results(self, experiment: str, key: str, table: pa.Table, mark: str = "") -> None:
        """Write or replace one stage's rows (`result_schema`) in an experiment's results.

        `mark` says what they were collected for; `results_mark` reads it back.
        """
        rows = table.cast(result_schema())
        whole = encode_rows(marked(rows, mark) if mark else rows)
        self._files.write(_rows_path(experiment, key), whole)

    def results_mark(self, experiment: str, key: str) -> str | None:
        """Return what a stage's rows were collected for, None if they are missing or damaged."""
        path = _rows_path(experiment, key)
        data = self._files.read(path)
        return None if data is None else mark_of(data, self._files.shown(path))

    def results(self, experiment: str | None = None) -> pa.Table:
        """Return the result rows of one experiment, or of all, in the order of their keys.

        Raises StoreError naming the file if one is damaged: its own checksum says so.
        """
        import pyarrow as pa

        names = self.experiments() if experiment is None else [_named(experiment)]
        paths = [
            f"{RESULTS}/{name}/{file}"
            for name in names
            for file in self._files.names(f"{RESULTS}/{name}")
            if file.endswith(".parquet")
        ]
        read = read_all(self._files, paths)
        tables = [decode_rows(data, self._files.shown(path), AGAIN) for path, data in read]
        for (path, _), table in zip(read, tables, strict=True):
            if not table.schema.equals(result_schema()):
                shown = self._files.shown(path)
                raise StoreError(f"{shown}: not result rows: {table.column_names}; {AGAIN}")
        return pa.concat_tables([result_schema().empty_table(), *tables])

    def result_stages(self, experiment: str) -> list[str]:
        """Return the keys of the stages that have rows in an experiment's results."""
        names = self._files.names(f"{RESULTS}/{_named(experiment)}")
        return [name.removesuffix(".parquet") for name in names if name.endswith(".parquet")]

    def experiments(self) -> list[str]:
        """Return the names of the experiments that have a plan or results."""
        planned = {name.removesuffix(".json") for name in self._files.names(PLANS)}
        found = planned | set(self._files.names(RESULTS))
        return sorted(name for name in found if not name.startswith("."))  # of the file manager

    def write_plan(self, experiment: str, plan: dict[str, Any]) -> None:
        """Keep an experiment's plan as it was last launched.

        If somebody deletes what no plan names (`upkeep.py`), return when that has ended: list what
        is committed only after this.
        """
        self._files.write(json_path(PLANS, _named(experiment)), sealed_json(plan))
        await_deletions(self._files)

    def plan(self, experiment: str) -> dict[str, Any] | None:
        """Return an experiment's plan as last launched, None if it never was."""
        path = json_path(PLANS, _named(experiment))
        data = self._files.read(path)
        shown = self._files.shown(path)
        return None if data is None else checked_plan(unsealed_json(data, shown, AGAIN), shown)

    # --- below

    def _located(self, artifact: ArtifactId) -> ArtifactId | None:
        if self._files.exists(f"{artifact.folder}/{MANIFEST}"):
            return artifact
        return self.find(artifact.kind, artifact.key)

    def _committed(self, artifact: ArtifactId) -> ArtifactId:
        found = self._located(artifact)
        if found is None:
            raise StoreError(f"{self}: {artifact.folder} is not there")
        return found

    def _publish(
        self, artifact: ArtifactId, folder: Path, manifest: dict[str, Any], rows: pa.Table | None
    ) -> bool:
        inside = self._files.adopt(folder)
        attempt = uuid4().hex
        try:
            with explained("write", str(inside)):
                if rows is not None:
                    (inside / ROWS).write_bytes(encode_rows(rows))
                write_manifest(inside, artifact, attempt, manifest)
            return self._files.publish(inside, artifact.folder, attempt)
        finally:
            shutil.rmtree(inside, ignore_errors=True)


AGAIN = (
    "delete it and start the same sweep or search again: it is written again from what the store "
    "has, nothing is trained twice"
)


def _reopened(uri: str) -> Store:
    return Store(reopen_files(uri), uri)


def _rows_path(experiment: str, key: str) -> str:
    return f"{RESULTS}/{_named(experiment)}/{path_part(key, 'stage key')}.parquet"


def _named(experiment: str) -> str:
    return path_part(experiment, "experiment name")
