"""What killed processes leave half made: named after their process, deleted when it is gone."""

import logging
import shutil
import time
from pathlib import Path
from uuid import uuid4

from recipe_ray.base.process import Process

# of another machine nobody here knows whether the process lives
FOREIGN_AGE_S = 24 * 3600.0
logger = logging.getLogger("recipe_ray")


def scratch_name() -> str:
    """Return a new name that says whose it is."""
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
    # a folder's own time stands still while a log in it grows
    times = [time.time()]
    for one in [path, *(path.rglob("*") if path.is_dir() else ())]:
        try:
            times.append(one.stat().st_mtime)
        except FileNotFoundError:
            return time.time()  # somebody is at it
    return max(times[1:])
