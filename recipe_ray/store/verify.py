"""Looks at all in a store that has a checksum or a form: `recipe-ray store verify`.

Damage of one thing does not hide the rest. But if the store itself is away, nothing is said of its
content. Nothing is changed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from obstore.exceptions import BaseError

from recipe_ray.base.errors import StoreError
from recipe_ray.store.claims import DRIVERS
from recipe_ray.store.files import Files
from recipe_ray.store.manifest import MANIFEST, ArtifactId
from recipe_ray.store.notes import FailureNote, Note, ProgressNote, damaged_notes
from recipe_ray.store.patience import passes_locally
from recipe_ray.store.remote import is_remote, reopen_files
from recipe_ray.store.rows import decode_rows
from recipe_ray.store.store import AGAIN, FAILURES, PLANS, PROGRESS, RESULTS, Store
from recipe_ray.store.upkeep import named, planned_stages

_READERS = 4  # checksums of large files at a time
_NOTES: dict[str, type[Note]] = {FAILURES: FailureNote, PROGRESS: ProgressNote, DRIVERS: Note}


@dataclass
class Verified:
    """How many things of each sort were looked at, and a sentence for each that is damaged."""

    checked: Counter[str] = field(default_factory=Counter)
    damaged: list[str] = field(default_factory=list)


Heard = Callable[[int, int], None]  # how many of how many were looked at


def verify_store(store: Store, on_progress: Heard = lambda done, total: None) -> Verified:
    """Look at all artifacts, rows, plans and notes.

    Raises StoreError if the store cannot be reached.
    """
    found = Verified()
    checks = list(_checks(store))
    with ThreadPoolExecutor(_READERS) as pool:
        said = pool.map(lambda check: (check[0], _problems(check[1])), checks)
        for done, (sort, problems) in enumerate(said, 1):
            found.checked[sort] += 1
            found.damaged += problems
            on_progress(done, len(checks))
    return found


Check = Callable[[], list[str] | None]


def _checks(store: Store) -> Iterator[tuple[str, Check]]:
    files, committed = reopen_files(store.uri), store.committed()
    for artifact in committed.values():
        yield "artifacts", partial(store.check, artifact)
    if not is_remote(store.uri):
        yield "folders", partial(_headless, store, files, committed)
    for experiment in files.names(RESULTS):
        for name in files.names(f"{RESULTS}/{experiment}"):
            if name.endswith(".parquet"):
                path = f"{RESULTS}/{experiment}/{name}"
                yield "files of rows", partial(_check_rows, files, path)
    for name in files.names(PLANS):
        if name.endswith(".json") and not name.startswith("."):
            experiment = name.removesuffix(".json")
            yield "plans", partial(_check_plan, store, experiment)
    for folder, shape in _NOTES.items():
        yield "folders", partial(_check_notes, files, folder, shape)


def _problems(check: Check) -> list[str]:
    try:
        return check() or []
    except StoreError as error:
        if isinstance(error.__cause__, BaseError) or (
            isinstance(error.__cause__, Exception) and passes_locally(error.__cause__)
        ):
            raise  # the store itself is away
        return [str(error)]


def _headless(store: Store, files: Files, committed: dict[str, ArtifactId]) -> list[str]:
    """Return the artifacts of a folder that lost their manifest; in an object store one without
    it was never committed.
    """
    wanted = named(store, committed).all
    found = []
    for kind in {artifact.kind for artifact in committed.values()}:
        whole = set(files.holding(kind, MANIFEST))
        for name in files.names(kind):
            artifact = ArtifactId.from_folder(kind, name)
            if artifact is not None and name not in whole and artifact.key in wanted:
                shown = files.shown(artifact.folder)
                found.append(
                    f"{shown}: no {MANIFEST}; delete this folder and start the same sweep again"
                )
    return found


def _check_rows(files: Files, path: str) -> None:
    data = files.read(path)
    if data is not None:  # None: deleted meanwhile
        decode_rows(data, files.shown(path), AGAIN)


def _check_plan(store: Store, experiment: str) -> None:
    planned_stages(store, experiment)


def _check_notes(files: Files, folder: str, shape: type[Note]) -> list[str]:
    return [str(error) for error in damaged_notes(files, folder, shape)]
