"""The folder that a single command leaves behind: the model, its card, a record for machines."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recipe_ray.base.errors import StoreError
from recipe_ray.stages.stage import MODEL_FOLDER, Stage
from recipe_ray.stages.store import Store
from recipe_ray.stages.tensorboard import FOLDER as EVENTS

CARD, RECORD = "README.md", "recipe_ray.json"


def check_free(out: Path) -> None:
    """Raise StoreError unless a folder can be put there: there is none, or an empty one."""
    if out.name in ("", ".."):
        raise StoreError(f"--out {out}: it has no name of its own; name a new folder")
    is_link, is_there = out.is_symlink(), out.exists()
    if is_link or (is_there and (not out.is_dir() or out.is_mount() or any(out.iterdir()))):
        raise StoreError(f"--out {out}: there is something already; name a new folder")


def work_store(out: Path) -> Store:
    """Return the store beside `out` in which the work is done, so that a stopped run goes on."""
    return Store.open(out.with_name(f"{out.name}.partial"))


def export(
    store: Store,
    stage: Stage,
    out: Path,
    card: Callable[[list[str]], str],
    give_back: Callable[[Path], list[str]] = lambda folder: [],
    record: Mapping[str, Any] | None = None,
) -> list[str]:
    """Put the stage's model, the card, the record and the event files at `out` in one rename.

    `give_back` changes the model's folder and says what it did, which `card` gets and is returned;
    `record` is added to the record.
    """
    source = store.fetch(stage.artifact)
    building = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    shutil.copytree(source / MODEL_FOLDER, building)
    said = give_back(building)
    events = Path(store.uri) / EVENTS
    if events.is_dir():
        shutil.copytree(events, building / EVENTS)
    (building / CARD).write_text(card(said))
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
