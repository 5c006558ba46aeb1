"""The few file operations a store needs, on a local (or NFS) folder; paths are relative to it.

What they promise: a file is seen whole or not at all, and so is an artifact's folder. Object
stores are in `remote.py`.

Files that killed processes leave half made are named after their process, and are deleted when it
is gone.

Operations are tried again for a while: networks and servers come back, full disks and wrong keys do
not. The pauses double from a fifth of a second to fifteen seconds. Each is shortened at random so
that many workers do not come back at once. No try begins later than a minute and a half after the
first.
"""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from uuid import uuid4

from recipe_ray.base.errors import DamagedError, StoreError
from recipe_ray.base.foreign import open_regular
from recipe_ray.base.process import Process
from recipe_ray.store.manifest import MANIFEST, verify

if TYPE_CHECKING:
    import pyarrow.fs as pafs

# for another machine nobody here knows whether the process lives
FOREIGN_AGE_S = 24 * 3600.0
logger = logging.getLogger("recipe_ray")


def scratch_name() -> str:
    """Return a new name that names this process."""
    return f"{Process.this()}.{uuid4().hex}"


def clear_dead(folder: Path, prefix: str = "") -> list[Path]:
    """Delete what dead processes left in `folder` under names that begin with `prefix`.

    A process of this machine must be gone; of another, nothing may have changed for a day.
    """
    found = [path for path in _entries(folder) if path.name.startswith(prefix)]
    dead = [path for path in found if _is_dead(path, path.name.removeprefix(prefix))]
    for path in dead:
        logger.info("deleting what a killed process left: %s", path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return dead


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _is_dead(path: Path, name: str) -> bool:
    owner = Process.parse(name.partition(".")[0])
    if owner is not None and owner.is_local:
        return owner.is_gone
    return time.time() - _changed(path) > FOREIGN_AGE_S


def _changed(path: Path) -> float:
    # a folder's own time does not change while a log in it grows
    times = [time.time()]
    for one in [path, *(path.rglob("*") if path.is_dir() else ())]:
        try:
            times.append(one.stat().st_mtime)
        except FileNotFoundError:
            return time.time()  # somebody uses it
    return max(times[1:])


T = TypeVar("T")

# errors of a mount while its server is away; other errors of a disk do not pass
_MOUNT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN}
_MOUNT |= {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNABORTED, errno.EREMOTEIO}


@dataclass(frozen=True)
class Patience:
    """How long a failing operation is tried again, and how long to wait in between, in seconds."""

    total_s: float = 90.0
    first_s: float = 0.2
    longest_s: float = 15.0

    def try_again(
        self,
        action: Callable[[], T],
        is_transient: Callable[[Exception], bool],
        what: str,
        reason: Callable[[Exception], str] = str,
    ) -> T:
        """Return what the action returns; raise its error if that is final or time is up."""
        give_up_at = time.monotonic() + self.total_s
        pause_s = self.first_s
        while True:
            try:
                return action()
            except Exception as error:
                wait_s = pause_s * random.uniform(0.5, 1.0)
                if not is_transient(error) or time.monotonic() + wait_s > give_up_at:
                    raise
                logger.warning("%s: %s; trying again", what, reason(error))
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, self.longest_s)


def passes_locally(error: Exception) -> bool:
    """Tell whether an error of a folder may pass: those of a mount whose server is away."""
    return isinstance(error, OSError) and error.errno in _MOUNT


SCRATCH = "tmp"

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}
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

    def scratch(self) -> Path:
        """Return a new empty local folder to build an artifact in."""

    def clear_scratch(self) -> None:
        """Delete what killed processes left in folders of `scratch`, never a living one's."""

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

    def scratch(self) -> Path:
        # not tempfile.mkdtemp: its 0700 would stay on the published folder of a shared store
        path = f"{SCRATCH}/{scratch_name()}"
        folder = self.root / path
        self._tried(lambda: folder.mkdir(parents=True, exist_ok=True), "write", path)
        return folder

    def clear_scratch(self) -> None:
        clear_dead(self.root / SCRATCH)

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

    def _tried(self, action: Callable[[], T], verb: str, path: str) -> T:
        shown = self.shown(path)
        with explained(verb, shown):
            return self._patience.try_again(action, passes_locally, f"{verb} {shown}")


@contextmanager
def explained(verb: str, shown: str) -> Iterator[None]:
    """Turn an operating system error into a `StoreError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {verb} {shown}: {_advice(error)}") from error


def _advice(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return (
            f"{reason}. Free some space (or use another store) and start the same command "
            "again: what is committed is kept, and the rest is done again"
        )
    if error.errno in _READ_ONLY:
        return f"{reason}. The store is read-only for this user; give write access or another store"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{reason}. A file is in the way where a folder is needed"
    return reason


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
