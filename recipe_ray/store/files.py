"""The few file operations a store needs, on a local (or NFS) folder; paths are relative to it.

What they promise: a file is seen whole or not at all, and so is an artifact's folder. Object
stores are in `remote.py`.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from recipe_ray.base.errors import DamagedError, StoreError
from recipe_ray.base.foreign import open_foreign, open_regular
from recipe_ray.store.leftovers import Entry, clear_dead, find_dead, scratch_name, walk_folder
from recipe_ray.store.manifest import MANIFEST, verify
from recipe_ray.store.patience import Patience, explained, passes_locally

if TYPE_CHECKING:
    import pyarrow.fs as pafs

T = TypeVar("T")

SCRATCH = "tmp"

_NOT_EMPTY = {errno.ENOTEMPTY, errno.EEXIST}


class Files(Protocol):
    """File operations relative to a store's root; every failure is a `StoreError`."""

    def shown(self, path: str) -> str:
        """Return a path as messages show it, without credentials."""

    def arrow(self) -> tuple[pafs.FileSystem, str]:
        """Return the pyarrow file system that reads the store, and the root in it."""

    def read(self, path: str) -> bytes | None:
        """Return a file's content, None if it does not exist."""

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file; readers see the old or the new one, never a part."""

    def remove(self, path: str) -> None:
        """Delete a file if it exists."""

    def exists(self, path: str) -> bool:
        """Tell whether a file exists."""

    def names(self, folder: str) -> list[str]:
        """Return the sorted names in a folder, none if it does not exist."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of each file in a folder by name, none if it does not exist."""

    def holding(self, folder: str, name: str) -> list[str]:
        """Return the sorted subfolders of a folder that have a file called `name`."""

    def walk(self, folder: str) -> list[Entry]:
        """Return every file below a folder (of the whole store: ""), sorted by path."""

    def remove_folder(self, folder: str) -> None:
        """Delete a folder with all that is in it; readers see an artifact whole or not at all."""

    def download(self, path: str, place: Path, within: str) -> None:
        """Copy a file of the store's folder `within` to a local place; its folder is made."""

    def scratch(self) -> Path:
        """Return a new empty local folder to build an artifact in."""

    def clear_scratch(self) -> None:
        """Delete what killed processes left in folders of `scratch`, never a living one's."""

    def dead_scratch(self) -> list[Path]:
        """Return what `clear_scratch` would delete."""

    def adopt(self, folder: Path) -> Path:
        """Bring a local folder to where it can be published from; the given one is consumed."""

    def check_free(self, target: str, folders: Iterable[str]) -> None:
        """Raise StoreError if `target` could not be published, or one of `folders` is a file."""

    def publish(self, folder: Path, target: str, attempt: str) -> bool:
        """Make an adopted folder visible as `target`, its manifest last; False if one is there."""

    def member(self, target: str, attempt: str, name: str) -> str:
        """Return the path of one file of a published folder."""

    def fetch(self, target: str, manifest: dict[str, Any], cache: Path) -> Path:
        """Return a local folder with a published folder's verified files."""

    def check(self, target: str, manifest: dict[str, Any]) -> None:
        """Raise StoreError naming the first file that is not as the manifest says; keep nothing."""


class LocalFiles:
    """`Files` in a folder of this machine or of a shared mount: write aside, sync, rename.

    While the server of a mount is away, operations are tried again (`Patience`); publishing
    is not, since what was written before a failed sync may be lost: the stage fails and continues
    from its checkpoint.
    """

    def __init__(self, root: Path, patience: Patience | None = None) -> None:
        self.root = root
        self._patience = patience or Patience()
        self._verified: set[str] = set()

    def shown(self, path: str) -> str:
        return str(self.root / path) if path else str(self.root)

    def arrow(self) -> tuple[pafs.FileSystem, str]:
        import pyarrow.fs as pafs

        return pafs.LocalFileSystem(), str(self.root)

    def read(self, path: str) -> bytes | None:
        def action() -> bytes | None:
            try:
                with open_regular(self.root / path, error=DamagedError) as file:
                    return file.read()
            except FileNotFoundError:
                return None

        return self._tried(action, "read", path)

    def write(self, path: str, data: bytes) -> None:
        target = self.root / path
        aside = self.root / SCRATCH / scratch_name()

        def action() -> None:
            aside.parent.mkdir(exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with aside.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(target)
            finally:
                aside.unlink(missing_ok=True)

        self._tried(action, "write", path)

    def remove(self, path: str) -> None:
        self._tried(lambda: (self.root / path).unlink(missing_ok=True), "delete", path)

    def exists(self, path: str) -> bool:
        return self._tried((self.root / path).is_file, "read", path)

    def names(self, folder: str) -> list[str]:
        def action() -> list[str]:
            try:
                # a grid of 10,000 cells has as many artifacts of one kind: no Path for each
                with os.scandir(self.root / folder) as entries:
                    return sorted(entry.name for entry in entries)
            except (FileNotFoundError, NotADirectoryError):
                return []  # people may keep a file next to the store's folders

        return self._tried(action, "list", folder)

    def sizes(self, folder: str) -> dict[str, int]:
        def action() -> dict[str, int]:
            try:
                with os.scandir(self.root / folder) as entries:
                    return {one.name: one.stat().st_size for one in entries if one.is_file()}
            except FileNotFoundError:
                return {}

        return self._tried(action, "list", folder)

    def holding(self, folder: str, name: str) -> list[str]:
        base = self.root / folder

        def action(subs: list[str]) -> list[str]:
            return [sub for sub in subs if (base / sub / name).is_file()]

        return self._tried(partial(action, self.names(folder)), "list", folder)

    def walk(self, folder: str) -> list[Entry]:
        return self._tried(lambda: walk_folder(self.root / folder, folder), "list", folder)

    def remove_folder(self, folder: str) -> None:
        place, aside = self.root / folder, self.root / SCRATCH / scratch_name()

        def action() -> None:
            aside.parent.mkdir(exist_ok=True)
            try:
                place.rename(aside)
                shutil.rmtree(aside)
            except FileNotFoundError:
                return  # somebody else has deleted it

        self._tried(action, "delete", folder)

    def download(self, path: str, place: Path, within: str) -> None:
        source, inside = self.root / path, self.root / within

        def action() -> None:
            place.parent.mkdir(parents=True, exist_ok=True)
            with (
                open_foreign(source, sys.maxsize, within=inside, error=StoreError) as file,
                place.open("wb") as copy,
            ):
                shutil.copyfileobj(file, copy)

        self._tried(action, "copy", path)

    def scratch(self) -> Path:
        # not tempfile.mkdtemp: its 0700 would stay on the published folder of a shared store
        path = f"{SCRATCH}/{scratch_name()}"
        folder = self.root / path
        self._tried(lambda: folder.mkdir(parents=True, exist_ok=True), "write", path)
        return folder

    def clear_scratch(self) -> None:
        clear_dead(self.root / SCRATCH)

    def dead_scratch(self) -> list[Path]:
        return find_dead(self.root / SCRATCH)

    def adopt(self, folder: Path) -> Path:
        if folder.resolve().parent == (self.root / SCRATCH).resolve():
            return folder
        inside = self.scratch()
        try:
            with explained("write", str(inside)):
                _copy_tree(folder, inside)
        except BaseException:
            shutil.rmtree(inside, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        return inside

    def check_free(self, target: str, folders: Iterable[str]) -> None:
        place = self.root / target
        with explained("write", str(place)):
            for folder in (self.root / name for name in folders):
                if os.path.lexists(folder) and not folder.is_dir():
                    raise StoreError(f"{folder}: in the way of a folder of the store; move it away")
            place.parent.mkdir(parents=True, exist_ok=True)
            if (place / MANIFEST).is_file():
                return  # another driver's, just now: the first one stays
            is_folder = place.is_dir() and not place.is_symlink()
            if (is_folder and any(place.iterdir())) or (not is_folder and os.path.lexists(place)):
                raise StoreError(f"{place}: in the way of an artifact, with no manifest; delete it")
            if not os.access(place.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "Permission denied")

    def publish(self, folder: Path, target: str, attempt: str) -> bool:
        place = self.root / target
        with explained("write", str(place)):
            place.parent.mkdir(parents=True, exist_ok=True)
            _sync_tree(folder)
            try:
                # renaming onto a folder that has files fails: the first one stays
                folder.rename(place)
            except OSError as error:
                if error.errno not in _NOT_EMPTY:
                    raise
                if not (place / MANIFEST).is_file():
                    raise StoreError(f"{place}: in the way, with no manifest; delete it") from error
                return False
            _sync(place.parent)
        return True

    def member(self, target: str, attempt: str, name: str) -> str:
        return f"{target}/{name}"

    def fetch(self, target: str, manifest: dict[str, Any], cache: Path) -> Path:
        folder = self.root / target
        # checksums once per process and artifact: a gigabyte of weights takes seconds
        known = target in self._verified
        check = partial(verify, folder, manifest, str(folder), sizes_only=known)
        self._tried(check, "read", target)
        self._verified.add(target)
        return folder

    def check(self, target: str, manifest: dict[str, Any]) -> None:
        folder = self.root / target
        self._tried(partial(verify, folder, manifest, str(folder)), "read", target)

    def _tried(self, action: Callable[[], T], verb: str, path: str) -> T:
        shown = self.shown(path)
        with explained(verb, shown):
            return self._patience.try_again(action, passes_locally, f"{verb} {shown}")


def _copy_tree(source: Path, target: Path) -> None:
    # not shutil.copytree: it continues after a full disk and hides the errno in a list
    for path in sorted(source.rglob("*")):
        place = target / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            place.mkdir()
        else:
            shutil.copy2(path, place, follow_symlinks=False)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.name != MANIFEST:
            _sync(path)
    _sync(folder / MANIFEST)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
