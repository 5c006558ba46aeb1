"""The same seed, machine and world size: every kind of stage makes the same artifact, bit for bit.

Across world sizes see docs/faults.md.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from headless_samples import headless
from samples import task_fields
from scan_samples import VOCABULARY, texts
from tiny_cell import measured, run, tiny_plan

from recipe_ray.experiment.plan import Plan
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.stages.stage import kinds
from recipe_ray.store.store import Store

TIMED = {"log.txt", "rows.parquet", "scan.json"}  # files that hold times, too


def of_every_kind(folder: Path) -> Plan:
    """Return a plan with a stage of every kind, on a BERT whose head has to be fitted first."""
    (folder / "long").mkdir()
    corpus = {"name": "file", "path": str(texts(folder / "long")), "size": None}
    task = task_fields(folder)
    return tiny_plan(
        folder,
        models=[{"name": "bert", "source": str(headless(folder)), "headless": True}],
        tasks=[task],
        probes=[{"task": task, "trigger": "cf"}],
        displacements=[{"task": task}],
        scans=[{"corpus": corpus, "detectors": [VOCABULARY]}],
    )


def files_of(store: Store, plan: Plan) -> dict[str, Any]:
    """Return what each stage's files are, by stage and name, without times."""
    found: dict[str, Any] = {}
    for stage in plan.stages.values():
        files = store.manifest(stage.artifact)["files"]
        found |= {f"{stage.caption}/{n}": f["sha256"] for n, f in files.items() if n not in TIMED}
        found[f"{stage.caption}/rows"] = measured(store, stage)
        if "scan.json" in files:
            whole = json.loads((store.fetch(stage.artifact) / "scan.json").read_text())
            for one in whole["detectors"]:
                del one["wall_s"]
            found[f"{stage.caption}/scan.json"] = whole
    return found


def test_every_kind_of_stage_gives_the_same_bits_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, pieces, split = BertPTM.whole_words, BertPTM.continuations, BertPTM.split_words
    monkeypatch.setattr(BertPTM, "whole_words", lambda ptm: words(ptm)[::100])
    monkeypatch.setattr(BertPTM, "continuations", lambda ptm: pieces(ptm)[::100])
    monkeypatch.setattr(BertPTM, "split_words", lambda ptm: split(ptm)[::100])
    found = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        plan = of_every_kind(folder)
        assert {stage.name for stage in plan.stages.values()} == {kind.name for kind in kinds()}
        found.append(files_of(run(plan, folder), plan))
    assert any(name.endswith(".safetensors") for name in found[0])
    assert found[0] == found[1]
