"""The places that a command or a call names: the data folder, a store, a folder or file to write.

This module is light, like those of the commands.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from recipe_ray.base.errors import SpecError
from recipe_ray.base.paths import existing_path, local_path, why_missing

if TYPE_CHECKING:
    from recipe_ray.data.sources import Locations
    from recipe_ray.store.store import Store

# a component by its name, its path, or its fields; see `arguments`
Named = str | PurePath | Mapping[str, Any]


def data_locations(data: str | None) -> Locations:
    """Return where data lie; raise SpecError or DataError for a folder that is missing."""
    from recipe_ray.data.sources import Locations

    if data is None:
        return Locations.from_environment()
    wanted = "the folder of data sets, or leave it out to read from the hub"
    return Locations.from_environment(existing_path(data, "--data", wanted, "folder"))


def output_folder(text: str, option: str) -> Path:
    """Return the path of a folder to write to; raise SpecError if it cannot be one."""
    path = local_path(text, option, "a folder on this machine")
    for above in (path, *path.parents):
        if above.exists() and not above.is_dir():
            raise SpecError(f"{option} {text}: {above} is a file, not a folder; name another")
    return path


def output_file(text: str, option: str) -> Path:
    """Return the path of a file to write; raise SpecError if it cannot be one."""
    path = local_path(text, option, "a file on this machine")
    output_folder(str(path.parent), option)
    if path.is_dir():
        raise SpecError(f"{option} {text}: it is a folder; name a file in it")
    return path


def present_store(place: str, option: str) -> Store:
    """Return a store that exists already: reading one must not make it.

    Raises SpecError for a missing place, and for a folder of something else.
    """
    from recipe_ray.store.remote import is_remote
    from recipe_ray.store.store import Store

    if is_remote(place):
        return Store.open(place)
    wanted = "the folder or URI that --store was given"
    path = local_path(place, option, wanted)
    if not path.is_dir():
        why = f"{place} is a file" if path.exists() else why_missing(place)
        raise SpecError(f"no store at {place}: {why}; give {wanted}")
    store = Store.open(path)
    kept = (store.experiments, store.committed, store.progress, store.failures)
    if any(path.iterdir()) and not any(held() for held in kept):
        some = ", ".join(sorted(entry.name for entry in path.iterdir())[:4])
        raise SpecError(f"no store at {place}: a folder with {some}; give {wanted}")
    return store


@contextmanager
def store_or_temporary(place: str) -> Iterator[Store]:
    """Yield the store at a place, or one that is deleted afterwards if none is named."""
    from recipe_ray.store.store import Store

    if place:
        yield Store.open(place)
        return
    with tempfile.TemporaryDirectory(prefix="recipe-ray-") as folder:
        yield Store.open(folder)
