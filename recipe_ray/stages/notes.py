"""JSON notes in a store, one a stage (why it failed, how far it is), each replacing the last."""

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from recipe_ray.base.names import path_part
from recipe_ray.stages.filesystem import Files
from recipe_ray.stages.manifest import ArtifactId, parse_json

_READERS = 16  # requests at a time; an object store answers each in tens of milliseconds


def json_path(folder: str, name: str) -> str:
    """Return where a folder keeps the JSON called `name`; raise StoreError if it is no name."""
    return f"{folder}/{path_part(name, f'{folder}: the name')}.json"


def write_note(files: Files, folder: str, artifact: ArtifactId, note: dict[str, Any]) -> None:
    """Write or replace a stage's note; kind, label and time of writing are added."""
    added = {"kind": artifact.kind, "label": artifact.label}
    whole = {"time": datetime.now(UTC).isoformat(), **note, **added}
    files.write(json_path(folder, artifact.key), json.dumps(whole).encode())


def read_note(files: Files, folder: str, key: str) -> dict[str, Any] | None:
    """Return a stage's note, None where there is none."""
    path = json_path(folder, key)
    data = files.read(path)
    return None if data is None else parse_json(data, files.shown(path))


def read_notes(files: Files, folder: str) -> dict[str, dict[str, Any]]:
    """Return every note of a folder by key."""
    names = [name for name in files.names(folder) if name.endswith(".json")]
    read = read_all(files, (f"{folder}/{name}" for name in names))
    return {
        path.rpartition("/")[2].removesuffix(".json"): parse_json(data, files.shown(path))
        for path, data in read
    }


def read_all(files: Files, paths: Iterable[str]) -> list[tuple[str, bytes]]:
    """Return the content of many files, read at the same time."""
    listed = list(paths)
    with ThreadPoolExecutor(_READERS) as pool:
        read = list(pool.map(files.read, listed))
    # what another process deleted since the listing is no longer there to report
    return [(path, data) for path, data in zip(listed, read, strict=True) if data is not None]
