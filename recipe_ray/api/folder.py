"""The folder that a single command leaves behind: the model, its card, a record of what was done.

The work is done in a store next to it, so that a stopped run continues.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipe_ray.api.running import Listener
from recipe_ray.base.errors import StoreError
from recipe_ray.stages.stage import MODEL_FOLDER, Stage
from recipe_ray.stages.tensorboard import FOLDER as EVENTS
from recipe_ray.store.store import Store

RECORD, RESULT = "recipe_ray.json", "result.json"


def check_free(out: Path, option: str = "--out") -> None:
    """Raise StoreError unless a folder can be put there: nothing or an empty folder is there."""
    if out.name in ("", ".."):
        raise StoreError(f"{option} {out}: it does not name a folder of its own; name a new folder")
    is_link, is_there = out.is_symlink(), out.exists()
    if is_link or (is_there and (not out.is_dir() or out.is_mount() or any(out.iterdir()))):
        raise StoreError(f"{option} {out}: something is there already; name a new folder")


@contextmanager
def work_store(out: Path, listener: Listener) -> Iterator[Store]:
    """Yield the store next to `out` in which the work is done, so that a stopped run continues.

    If the work is stopped before anything in it could be continued, it is deleted.
    """
    folder = out.with_name(f"{out.name}.partial")
    if folder.is_dir():
        listener.say(f"{folder} is of a run that was stopped: what it has is used")
    store = Store.open(folder)
    try:
        yield store
    except BaseException:
        if not (store.committed() or store.checkpoints()):
            shutil.rmtree(folder, ignore_errors=True)
        raise


def export(
    store: Store,
    stage: Stage,
    out: Path,
    texts: Callable[[list[str], Path], Mapping[str, str]],
    give_back: Callable[[Path], list[str]] = lambda folder: [],
    record: Mapping[str, Any] | None = None,
) -> list[str]:
    """Put the stage's model, texts, the record and the event files at `out` in one rename.

    `give_back` changes the model's folder and says what it did, which is returned. `texts` gets it
    and that folder, and returns files by name, such as the card. `record` is added to the record.
    """
    source = store.fetch(stage.artifact)
    building = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(source / MODEL_FOLDER, building)
    said = give_back(building)
    events = Path(store.uri) / EVENTS
    if events.is_dir():
        shutil.copytree(events, building / EVENTS)
    for name, text in texts(said, building).items():
        (building / name).write_text(text, encoding="utf-8")
    whole = {**_record(store, stage), **(record or {})}
    (building / RECORD).write_text(json.dumps(whole, indent=1))
    if out.exists():
        out.rmdir()
    building.rename(out)
    shutil.rmtree(out.with_name(f"{out.name}.partial"), ignore_errors=True)
    return said


def _record(store: Store, stage: Stage) -> dict[str, Any]:
    rows = store.rows(stage.artifact).to_pylist()
    measured = {
        row["metric"]: row["value"]
        for row in rows
        if row["trigger"] is None and row["value"] is not None
    }
    return {"manifest": store.manifest(stage.artifact), "measured": measured}
