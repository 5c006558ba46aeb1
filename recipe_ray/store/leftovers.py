"""Files of local folders: all of them, and those that killed processes left half made.

Such files are named after their process, and are deleted when it is gone. Of a process on another
machine nothing is known, so what it left is deleted when nothing has changed in it for a day.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from recipe_ray.base.process import Process

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
    dead = find_dead(folder, prefix)
    for path in dead:
        logger.info("deleting what a killed process left: %s", path)
        delete_scratch(path)
    return dead


def find_dead(folder: Path, prefix: str = "") -> list[Path]:
    """Return what `clear_dead` would delete."""
    found = [path for path in _entries(folder) if path.name.startswith(prefix)]
    return [path for path in found if _is_dead(path, path.name.removeprefix(prefix))]


def delete_scratch(path: Path) -> None:
    """Delete a file or folder of a process, if it is still there; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Entry:
    """A file: its path in the store (of scratch: on this machine), its bytes, its last change."""

    path: str
    bytes: int
    changed: float  # seconds since 1970


def walk_folder(folder: Path, shown: str) -> list[Entry]:
    """Return all files below a local folder, each called `shown`/...; links are not followed."""
    found = []
    for place, _, names in os.walk(folder):
        for path in [Path(place, name) for name in names]:
            try:
                about = path.lstat()
            except FileNotFoundError:
                continue  # deleted meanwhile
            inside = Path(shown, path.relative_to(folder)).as_posix()
            found.append(Entry(inside, about.st_size, about.st_mtime))
    return sorted(found, key=lambda entry: entry.path)


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
