"""Makes `tests/first_store/`, a store as the first release lays it out; run this file to do so.

It is not made again with a later layout: `tests/test_store_upkeep.py` shows that later versions
still read it. The artifacts' models are text; the rows are those of a report.
"""

import shutil
from pathlib import Path

import pyarrow as pa
from report_samples import clean, por

from recipe_ray.store.store import ArtifactId, Store

FOLDER = Path(__file__).with_suffix("")
EXPERIMENT = "table1"
BACKDOOR = ArtifactId("backdoor", "bert-por", "0123456789abcdef")
LEAVES = {"p0": ArtifactId("finetune", "por", "p0"), "c0": ArtifactId("finetune", "clean", "c0")}


def fill(store: Store) -> None:
    """Write one backdoored PTM, two fine-tunings of it, their rows and their plan."""
    rows = {"p0": por(), "c0": clean()}
    commit(store, BACKDOOR, None, None)
    for key, leaf in LEAVES.items():
        own = rows[key].drop_columns(["experiment", "cell"])
        commit(store, leaf, BACKDOOR.key if key == "p0" else None, own)
        store.write_results(EXPERIMENT, key, rows[key])
    store.write_plan(EXPERIMENT, plan())


def plan() -> dict[str, object]:
    """Return the plan's record: two cells, one of which has a parent."""
    about = {"kind": "finetune", "label": "sst2", "seed": 0, "parent": None}
    stages = {
        BACKDOOR.key: {"kind": "backdoor", "label": "bert-por", "seed": 0, "parent": None},
        "p0": {**about, "parent": BACKDOOR.key},
        "c0": about,
    }
    cells = [
        {"id": "p0", "title": "por", "stages": [BACKDOOR.key, "p0"]},
        {"id": "c0", "title": "clean", "stages": ["c0"]},
    ]
    return {"experiment": EXPERIMENT, "paper": None, "cells": cells, "stages": stages}


def commit(
    store: Store, artifact: ArtifactId, parent: str | None, rows: pa.Table | None
) -> ArtifactId:
    """Commit an artifact of a small model, its log and perhaps rows."""
    folder = store.local_scratch()
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_text(f"weights of {artifact.label}")
    (folder / "log.txt").write_text("2026-01-02 done in 1.0 s\n")
    assert store.commit(artifact, folder, {"parent": parent}, rows)
    return artifact


if __name__ == "__main__":
    shutil.rmtree(FOLDER, ignore_errors=True)
    fill(Store.open(FOLDER))
    shutil.rmtree(FOLDER / "tmp")
