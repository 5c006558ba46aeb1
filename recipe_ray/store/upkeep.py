"""What takes space in a store, and what of it can go: `recipe-ray store du` and `gc`.

What counts as wanted: the stages that the plans in the store name, and all their ancestors. The
plan of a search names only its last stages, so the parents are read from the manifests. If an
experiment has rows and no plan (it was damaged and deleted, say), its rows name its stages. Rows
and plans themselves are never deleted.

Deleting and planning never miss each other. Who deletes first holds `claims.DELETING`, and then
reads the plans. Who starts a sweep first writes its plan, and then waits for one who deletes
(`Store.write_plan`), and only then lists what is committed. So either the plan is read here, or
the sweep sees what was deleted.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from recipe_ray.base.errors import DamagedError, StoreError
from recipe_ray.store.claims import DELETING, DELETING_LEASE_S, of_the_dead
from recipe_ray.store.files import Files
from recipe_ray.store.leftovers import FOREIGN_AGE_S, Entry, delete_scratch, walk_folder
from recipe_ray.store.manifest import ArtifactId
from recipe_ray.store.remote import is_remote, reopen_files
from recipe_ray.store.store import AGAIN, CHECKPOINTS, FAILURES, PROGRESS, ROOMS, Store

_READERS = 16
_EVENTS = "tensorboard"
_FRESH_S = 60.0  # a stage without a driver wrote its progress within this time: it runs
_ATTEMPT = re.compile(r"[0-9a-f]{32}")


class _PlannedStage(BaseModel):
    model_config = ConfigDict(strict=True, defer_build=True)
    parent: str | None = None


class _Plan(BaseModel):
    model_config = ConfigDict(strict=True, defer_build=True)
    cells: list[dict[str, Any]] = []
    stages: dict[str, _PlannedStage]


def planned_stages(store: Store, experiment: str) -> dict[str, str | None] | None:
    """Return the parent of each stage that an experiment's plan names; None without a plan.

    Raises StoreError for a plan that is damaged, or is not one.
    """
    plan = store.plan(experiment)
    if plan is None:
        return None
    try:
        stages = _Plan.model_validate(plan).stages
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise DamagedError(
            f"{store}: the plan of {experiment}: {place}: {first['msg']}; {AGAIN}"
        ) from error
    return {key: stage.parent for key, stage in stages.items()}


@dataclass
class Named:
    """The stages of each experiment with their ancestors, and the plans that cannot be read."""

    stages: dict[str, set[str]] = field(default_factory=dict)
    problems: list[StoreError] = field(default_factory=list)

    @property
    def all(self) -> set[str]:
        """The stages of all experiments."""
        return set().union(*self.stages.values())


def named(
    store: Store, committed: dict[str, ArtifactId], experiments: Iterable[str] | None = None
) -> Named:
    """Return what experiments name, all of them if none is given; `committed`: the store's."""
    found = Named()
    parents: dict[str, str | None] = {}
    for experiment in store.experiments() if experiments is None else experiments:
        try:
            own = planned_stages(store, experiment)
            if own is None:
                own = dict.fromkeys(store.result_stages(experiment))
        except StoreError as error:
            found.problems.append(error)
            continue
        found.stages[experiment] = set(own)
        parents |= {key: parent for key, parent in own.items() if parent or key not in parents}
    _add_from_manifests(store, committed, parents, found.problems)
    for experiment, keys in found.stages.items():
        found.stages[experiment] = _with_ancestors(keys, parents)
    return found


def _with_ancestors(keys: set[str], parents: dict[str, str | None]) -> set[str]:
    whole, new = set(keys), set(keys)
    while new := {up for key in new if (up := parents.get(key))} - whole:
        whole |= new
    return whole


def _add_from_manifests(
    store: Store,
    committed: dict[str, ArtifactId],
    parents: dict[str, str | None],
    problems: list[StoreError],
) -> None:
    """Add to `parents` what the manifests of stages say whose plan names no parent."""

    def parent_of(key: str) -> str | None:
        try:
            parent = store.manifest(committed[key]).get("parent")
        except StoreError as error:
            problems.append(error)
            return None
        return parent if isinstance(parent, str) else None

    seen = {*parents, *parents.values()}
    todo = sorted(key for key in seen if key is not None and parents.get(key) is None)
    with ThreadPoolExecutor(_READERS) as pool:
        while todo := [key for key in todo if key in committed]:
            found = dict(zip(todo, pool.map(parent_of, todo), strict=True))
            parents.update(found)
            todo = sorted({up for up in found.values() if up} - seen)
            seen |= set(todo)


@dataclass
class Usage:
    """Bytes of a store: by kind of artifact, by other folder, and by experiment.

    An experiment's `own` artifacts are those that no other names. `shared` are named by several,
    and counted once; `unnamed` by none.
    """

    total: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    folders: Counter[str] = field(default_factory=Counter)
    own: Counter[str] = field(default_factory=Counter)
    shared_of: Counter[str] = field(default_factory=Counter)
    shared: int = 0
    unnamed: int = 0
    problems: list[StoreError] = field(default_factory=list)


OTHER = "other files"


def usage(store: Store) -> Usage:
    """Return what takes how much space, from one walk over the store."""
    found, by_key = Usage(), Counter[str]()
    for entry in reopen_files(store.uri).walk(""):
        found.total += entry.bytes
        artifact = _artifact_of(entry.path)
        if artifact is not None:
            found.kinds[artifact.kind] += entry.bytes
            by_key[artifact.key] += entry.bytes
        else:
            room = entry.path.partition("/")[0]
            found.folders[room if room in ROOMS else OTHER] += entry.bytes
    names = named(store, store.committed())
    found.problems = names.problems
    for key, size in by_key.items():
        users = [experiment for experiment, keys in names.stages.items() if key in keys]
        if not users:
            found.unnamed += size
        elif len(users) == 1:
            found.own[users[0]] += size
        else:
            found.shared += size
            found.shared_of.update(dict.fromkeys(users, size))
    for experiment in names.stages:
        found.own[experiment] += 0  # one without artifacts is shown, too
    return found


def _artifact_of(path: str) -> ArtifactId | None:
    kind, _, rest = path.partition("/")
    name, inside, _ = rest.partition("/")
    if not inside or kind in ROOMS or not re.fullmatch(r"[A-Za-z0-9_]+", kind):
        return None
    return ArtifactId.from_folder(kind, name)


What = Literal["artifact", "upload", "checkpoint", "note", "scratch", "claim", "events"]
WHAT: dict[What, str] = {
    "artifact": "artifacts that no plan names",
    "upload": "files of interrupted uploads",
    "checkpoint": "resume points of committed stages",
    "note": "notes of committed stages",
    "scratch": "scratch of dead processes",
    "claim": "claims and leases of dead drivers",
    "events": "event files of stages that no plan names",
}
_FOLDERS = ("artifact", "upload", "events")


@dataclass(frozen=True)
class Garbage:
    """Something that can go: a file or folder of the store (of scratch: of this machine)."""

    what: What
    path: str
    bytes: int
    changed: float  # the last change of any file in it, in seconds since 1970


def garbage(store: Store, keep_s: float = 0.0) -> list[Garbage]:
    """Return what can go, without what changed in the last `keep_s` seconds.

    Raises StoreError if a plan, or the manifest of a wanted stage, is damaged: it is then not known
    what it names.
    """
    files, committed = reopen_files(store.uri), store.committed()
    names = named(store, committed)
    if names.problems:
        raise StoreError(
            f"it is not known what is still wanted: {names.problems[0]}. "
            "`recipe-ray store verify` names all that is damaged"
        )
    wanted = names.all
    entries = files.walk("")
    found = [
        *_orphans(entries, committed, wanted),
        *(_uploads(store, entries, committed) if is_remote(store.uri) else ()),
        *_single("checkpoint", entries, {f"{CHECKPOINTS}/{key}" for key in committed}),
        *_single(
            "note", entries, {f"{n}/{k}.json" for n in (FAILURES, PROGRESS) for k in committed}
        ),
        *_single("claim", entries, of_the_dead(files)),
        *_events(entries, wanted),
        *_scratch(files),
    ]
    return [one for one in found if time.time() - one.changed >= keep_s]


def _summed(what: What, folders: dict[str, list[Entry]]) -> Iterator[Garbage]:
    for path, inside in sorted(folders.items()):
        changed = max(entry.changed for entry in inside)
        yield Garbage(what, path, sum(entry.bytes for entry in inside), changed)


def _orphans(
    entries: Iterable[Entry], committed: dict[str, ArtifactId], wanted: Collection[str]
) -> Iterator[Garbage]:
    folders: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        artifact = _artifact_of(entry.path)
        # one without a manifest is somebody's folder, or about to be committed
        if artifact is not None and artifact.key in committed and artifact.key not in wanted:
            folders[artifact.folder].append(entry)
    return _summed("artifact", folders)


def _uploads(
    store: Store, entries: Iterable[Entry], committed: dict[str, ArtifactId]
) -> Iterator[Garbage]:
    folders: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        artifact, parts = _artifact_of(entry.path), entry.path.split("/")
        if artifact is not None and len(parts) > 3 and _ATTEMPT.fullmatch(parts[2]):
            folders["/".join(parts[:3])].append(entry)
    several = Counter(path.rpartition("/")[0] for path in folders)
    by_folder = {artifact.folder: artifact for artifact in committed.values()}
    for one in _summed("upload", folders):
        above, _, attempt = one.path.rpartition("/")
        artifact = by_folder.get(above)
        # the only one of a committed artifact is its own: no manifest needs to be read
        is_own = artifact is not None and (
            several[above] == 1 or store.manifest(artifact)["attempt"] == attempt
        )
        if not is_own and time.time() - one.changed > FOREIGN_AGE_S:
            yield one


def _single(what: What, entries: Iterable[Entry], paths: Collection[str]) -> Iterator[Garbage]:
    for entry in entries:
        if entry.path in paths:
            yield Garbage(what, entry.path, entry.bytes, entry.changed)


def _events(entries: Iterable[Entry], wanted: Collection[str]) -> Iterator[Garbage]:
    folders: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        room, *parts = entry.path.split("/")
        if room == _EVENTS and len(parts) == 3 and parts[1].rpartition("-")[2] not in wanted:
            folders["/".join((room, *parts[:2]))].append(entry)
    return _summed("events", folders)


def _scratch(files: Files) -> Iterator[Garbage]:
    for path in files.dead_scratch():
        inside = walk_folder(path, str(path)) or [_entry_of(path)]
        yield from _summed("scratch", {str(path): inside})


def _entry_of(path: Path) -> Entry:
    about = path.lstat()
    return Entry(str(path), 0 if path.is_dir() else about.st_size, about.st_mtime)


def clear(
    store: Store,
    keep_s: float = 0.0,
    *,
    told: Callable[[], dict[str, Any]] = dict,
    on_delete: Callable[[Garbage], None] = lambda one: None,
    lease_s: float = DELETING_LEASE_S,
) -> list[Garbage]:
    """Delete what `garbage` returns, and return it; `told`: what `status` shows meanwhile.

    Raises StoreError, before anything is deleted, if a driver or a stage without one is at work;
    and between two deletions if this process was stopped for so long that others count it as dead.
    """
    files = reopen_files(store.uri)
    # the beginning of our own lease removes those of the dead
    dead = [one for one in garbage(store, keep_s) if one.what == "claim"]
    with store.claims(lease_s, told) as claims:
        # in this order: see above
        if not claims.take(DELETING):
            raise StoreError(f"{store}: another `store gc` deletes from it now")
        others = claims.living()
        if others:
            raise StoreError(
                f"{store}: {claims.who(others[0])}, works on it and may be about to use what would "
                "be deleted; wait for its end (`recipe-ray status` shows it)"
            )
        _refuse_running(store)
        found = {one.path: one for one in (*dead, *garbage(store, keep_s))}
        for one in found.values():
            claims.held()
            if DELETING in claims.lost:
                raise StoreError(f"{store}: this process was stopped for too long; start it again")
            _delete(files, one)
            on_delete(one)
    return list(found.values())


def _refuse_running(store: Store) -> None:
    now, committed = datetime.now(UTC), store.committed()
    for key, note in store.progress().items():
        age = now - datetime.fromisoformat(note["time"])
        if age.total_seconds() < _FRESH_S and key not in committed:
            raise StoreError(
                f"{store}: {note['kind']} {note['label']} runs on it, or did a minute ago; wait "
                "for its end (`recipe-ray status` shows it)"
            )


def _delete(files: Files, one: Garbage) -> None:
    if one.what == "scratch":
        delete_scratch(Path(one.path))
    elif one.what in _FOLDERS:
        files.remove_folder(one.path)
    else:
        files.remove(one.path)
