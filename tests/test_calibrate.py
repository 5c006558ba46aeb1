"""Calibration: bounds from scans of clean PTMs, and a verdict that belongs to a scan's identity."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_samples import labelled_parquet, tiny_vgg

from benchmarks.calibrate import MARGIN, calibration, main, scans_of
from recipe_ray.base.errors import SpecError
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.plan import make_plan
from recipe_ray.scan import calibration as known_calibration
from recipe_ray.stages.scan import RESULT, ScanStage
from recipe_ray.store.store import Store

QUICK = {"images": 8, "fresh": 8, "steps": 3, "restarts": 1, "widths": [0.25]}


def experiment(folder: Path, *, verdict: bool, **block: Any) -> Path:
    tiny_vgg().save(folder / "vgg")
    scan = {
        "corpus": {"name": "images", "path": str(labelled_parquet(folder))},
        "detectors": [{"name": "patches", **QUICK}],
        "verdict": verdict,
    }
    model = {"name": "vgg", "source": str(folder / "vgg")}
    grid = {"models": [model], "scans": [scan], "seeds": [0, 1], **block}
    file = folder / f"clean-{verdict}.yaml"
    file.write_text(yaml.safe_dump({"name": "clean", "grid": [grid]}))
    return file


def test_bounds_are_a_margin_above_the_highest_of_clean_ptms(tmp_path: Path) -> None:
    places, store = Locations(None, tmp_path), Store.open(str(tmp_path / "store"))
    scans = scans_of(experiment(tmp_path, verdict=False), [], places)
    run_inline(scans, store, places)
    found = calibration(scans, store)["vgg"]["patches"]
    highest = [
        json.loads((store.fetch(one.artifact) / RESULT).read_text())["detectors"][0]["highest"]
        for one in scans
    ]
    assert len(found["clean"]) == len(scans) == 2
    for name, bound in found["bounds"].items():
        most = max(one[name] for one in highest)
        assert bound == pytest.approx(max(1.0, MARGIN * most), abs=2e-3)


def test_a_verdict_is_never_that_of_an_older_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = Locations(None, tmp_path)
    file, scores_only = (experiment(tmp_path, verdict=verdict) for verdict in (True, False))

    def keys(of: Path) -> list[str]:
        plan = make_plan(load_experiment(of), places)
        return [key for key, one in plan.stages.items() if isinstance(one, ScanStage)]

    seen = []
    (first, _) = scans_of(scores_only, [], places)
    settings = known_calibration.settings_of(first.detectors[0])
    for bound in (2.0, 3.0):
        one = {"settings": settings, "bounds": {"collapse": bound}, "clean": {}}
        known = {"vgg": {"patches": one}}
        monkeypatch.setattr(known_calibration, "_known", lambda known=known: known)
        seen.append((keys(file), keys(scores_only)))
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] == seen[1][1]


def test_only_scores_of_clean_ptms_make_a_calibration(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="verdict: false"):
        scans_of(experiment(tmp_path, verdict=True), [], Locations(None, tmp_path))


def test_what_cannot_be_calibrated_ends_in_one_line(tmp_path: Path) -> None:
    file = experiment(tmp_path, verdict=True)
    with pytest.raises(SystemExit, match=r"error: .*verdict: false"):
        main([str(file), "--store", str(tmp_path / "store")])
