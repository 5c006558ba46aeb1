"""One experiment of a store as a store of its own: `recipe-ray store export`.

Every copied file is compared with its manifest. Without the models, a manifest lists what was
left out, and whoever asks for such a model is told so (`Store.fetch`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from recipe_ray.base.errors import StoreError, unknown
from recipe_ray.base.fingerprint import file_checksum
from recipe_ray.store.manifest import LEFT_OUT, ROWS, ArtifactId, check_size, check_sum
from recipe_ray.store.patience import explained
from recipe_ray.store.remote import reopen_files
from recipe_ray.store.rows import decode_rows
from recipe_ray.store.store import AGAIN, RESULTS, Store
from recipe_ray.store.upkeep import named


@dataclass(frozen=True)
class Exported:
    """How many stages were copied, and how many of the plan the store lacks."""

    stages: int
    missing: int


def export_experiment(
    store: Store,
    experiment: str,
    target: Path,
    keep: Collection[str] | None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Exported:
    """Copy an experiment's plan, rows and artifacts into a new folder, which is a store.

    Of each artifact the files called as in `keep`, and its rows; None: all files. The folder is
    there whole or not at all. Raises StoreError if it is not empty, if the store has no such
    experiment, or if something that would be copied is damaged.
    """
    plan = store.plan(experiment)
    if plan is None:
        raise StoreError(f"{store}: {unknown('experiment', experiment, store.experiments())}")
    _check_new(target)
    committed = store.committed()
    names = named(store, committed, [experiment])
    if names.problems:
        raise names.problems[0]
    keys = names.stages[experiment]
    artifacts = [artifact for key, artifact in committed.items() if key in keys]
    with explained("write", str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f"{target.name}.{uuid4().hex}.partial")
        try:
            copy = Store.open(aside)
            for done, artifact in enumerate(artifacts, 1):
                _copy_artifact(store, copy, artifact, keep)
                on_progress(done, len(artifacts))
            _copy_rows(store, copy, experiment)
            copy.write_plan(experiment, plan)
            aside.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return Exported(len(artifacts), len(keys) - len(artifacts))


def _check_new(target: Path) -> None:
    with explained("write", str(target)):
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise StoreError(f"{target}: something is there that is not a folder; name a new one")
        if target.is_dir() and any(target.iterdir()):
            raise StoreError(f"{target}: the folder is not empty; name a new one")


def _copy_artifact(
    store: Store, copy: Store, artifact: ArtifactId, keep: Collection[str] | None
) -> None:
    files, manifest = reopen_files(store.uri), store.manifest(artifact)
    listed: dict[str, dict[str, Any]] = manifest["files"]
    chosen = [name for name in listed if keep is None or name == ROWS or name in keep]
    folder = copy.local_scratch()
    for name in chosen:
        path = files.member(artifact.folder, str(manifest["attempt"]), name)
        place = folder / name
        files.download(path, place, artifact.folder)
        check_size(files.shown(path), place.stat().st_size, listed[name])
        check_sum(files.shown(path), file_checksum(place), listed[name])
    left_out = sorted({*listed} - {*chosen} | {*manifest.get(LEFT_OUT, ())})
    about = {**manifest, LEFT_OUT: left_out} if left_out else manifest
    copy.commit(artifact, folder, about)


def _copy_rows(store: Store, copy: Store, experiment: str) -> None:
    source, target = reopen_files(store.uri), reopen_files(copy.uri)
    for key in store.result_stages(experiment):
        path = f"{RESULTS}/{experiment}/{key}.parquet"
        data = source.read(path)
        if data is not None:
            decode_rows(data, source.shown(path), AGAIN)
            target.write(path, data)
