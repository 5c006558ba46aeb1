"""Calibration: bounds from scans of clean PTMs, and a verdict that belongs to a scan's identity."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from image_samples import labelled_parquet, tiny_vgg

from benchmarks.calibrate import calibration, main, scans_of
from recipe_ray.base.errors import SpecError
from recipe_ray.data.sources import Locations
from recipe_ray.detectors import calibration as known_calibration
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.plan import make_plan
from recipe_ray.stages.scan import RESULT, ScanStage, default_detectors
from recipe_ray.store.store import Store

MARGINS = known_calibration.MARGIN, known_calibration.SPREADS
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
        most = max(1.0, *(one[name] for one in highest))
        assert bound >= known_calibration.MARGIN * most - 2e-3


@pytest.mark.parametrize(
    ("clean", "bound"),
    [
        ([8.0], 12.0),  # one PTM tells nothing of how they differ
        ([8.0, 8.0, 8.0], 12.0),
        ([-3.0, 0.2], 1.5),  # so low is normal anywhere
        ([10.0, 1000.0], 100 * 10 ** (3 * 2**0.5)),  # their logarithms: 2 +- 1.414, to base 10
    ],
)
def test_a_bound_is_as_wide_as_clean_ptms_differ(clean: list[float], bound: float) -> None:
    found = known_calibration.bounds_from([{"first": one} for one in clean])
    assert found["first"] == pytest.approx(bound, rel=1e-3)


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
        main([str(file), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "o.json")])


def test_a_model_as_it_stands_is_scanned_with_the_same_data(tmp_path: Path) -> None:
    places, store = Locations(None, tmp_path), Store.open(str(tmp_path / "store"))
    file = experiment(tmp_path, verdict=False)
    run_inline(scans_of(file, [], places), store, places)
    tiny_vgg().save(tmp_path / "other")
    words = [str(file), "--store", str(tmp_path / "store"), "--out", str(tmp_path / "made.json")]
    main([*words, "--also", f"{{name: vgg, source: {tmp_path / 'other'}}}"])
    made = json.loads((tmp_path / "made.json").read_text())["vgg"]["patches"]
    assert len(made["clean"]) == 3
    assert set(made["bounds"]) == {"collapse", "features", "smallness"}


@pytest.mark.parametrize("make", ["bert", "roberta"])
def test_shipped_bounds_are_those_of_the_detectors_as_they_are(make: str) -> None:
    for detector in default_detectors("text"):
        bounds = known_calibration.known_bounds(make, detector)
        assert bounds is not None, f"{detector.name}: settings changed, calibrate it again"
        known = json.loads((files("recipe_ray.detectors") / "calibration.json").read_text())
        found = known[make][detector.name]
        clean = found["clean"].values()
        assert len(clean) >= 2
        assert (found["margin"], found["spreads"]) == MARGINS
        assert bounds.by_score == known_calibration.bounds_from(clean)
