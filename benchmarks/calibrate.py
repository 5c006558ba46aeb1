"""`python -m benchmarks.calibrate FILE`: what `scan` calls normal, from scans of clean PTMs.

    recipe-ray sweep experiments/mini/calibration.yaml --data DATA --store runs/calibration
    python -m benchmarks.calibrate experiments/mini/calibration.yaml --data DATA \\
        --store runs/calibration --also '{name: minilm, layers: 6}' \\
        --out recipe_ray/detectors/calibration.json

FILE is an experiment whose scans are all of clean PTMs, and has been run. `--also` scans a model as
it stands, without the head that an experiment fits; what the store has is not scanned again. A
bound holds for one make and one detector with the same settings (`bounds_from`). The file names
each PTM with its own highest values, so that a reader can see which one sets a bound.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from recipe_ray.api.arguments import parse_model
from recipe_ray.base.errors import SpecError, UserError
from recipe_ray.data.sources import Locations
from recipe_ray.detectors.calibration import MARGIN, SPREADS, bounds_from, settings_of
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.plan import make_plan
from recipe_ray.stages.scan import RESULT, Scan, ScanStage
from recipe_ray.store.store import Store


def scans_of(file: Path, also: list[str], locations: Locations) -> list[ScanStage]:
    """Return the scans of an experiment, and those of models as they stand with the same data.

    Raises SpecError if a scan is not of a clean PTM.
    """
    plan = make_plan(load_experiment(file), locations)
    scans = [one for one in plan.stages.values() if isinstance(one, ScanStage)]
    for one in scans:
        if one.columns()["attack"] != "none" or one.verdict:
            raise SpecError(f"{file}: scans must be of clean PTMs, and say `verdict: false`")
    for text in also:
        model = parse_model(text, allow_pickle=False, revision=None)
        like = next(one for one in scans if one.model.reads == model.reads)
        how = {name: getattr(like, name) for name in Scan.model_fields}
        scans.append(ScanStage(model=model, content=like.content, seed=like.seed, **how))
    return scans


def calibration(scans: list[ScanStage], store: Store) -> dict[str, Any]:
    """Return the content of calibration.json from scans that the store has."""
    clean: dict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    settings: dict[tuple[str, str], str] = {}
    for stage in scans:
        record = json.loads((store.fetch(stage.artifact) / RESULT).read_text())
        for detector, found in zip(stage.detectors, record["detectors"], strict=True):
            at = record["make"], detector.name
            if settings.setdefault(at, settings_of(detector)) != settings_of(detector):
                raise SpecError(f"{stage.label()}: other settings of {detector.name} than before")
            highest = {name: round(value, 3) for name, value in found["highest"].items()}
            clean[at][f"{stage.label()}.s{stage.seed} {stage.key[:8]}"] = highest
    made: dict[str, Any] = defaultdict(dict)
    for (make, name), by_ptm in sorted(clean.items()):
        made[make][name] = {
            "settings": settings[make, name],
            "margin": MARGIN,
            "spreads": SPREADS,
            "bounds": bounds_from(by_ptm.values()),
            "clean": by_ptm,
        }
    return dict(made)


def main(arguments: list[str] | None = None) -> None:
    """Scan what is missing of `--also`, and write the calibration."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibrate")
    parser.add_argument("file", type=Path, nargs="+", help="experiments of clean PTMs (YAML)")
    parser.add_argument("--also", action="append", default=[], metavar="MODEL")
    parser.add_argument("--out", type=Path, required=True, help="calibration.json")
    parser.add_argument("--store", default="runs")
    parser.add_argument("--data", type=Path)
    given = parser.parse_args(arguments)
    try:
        locations = Locations.from_environment(given.data)
        store = Store.open(given.store)
        scans: list[ScanStage] = []
        for number, file in enumerate(given.file):
            scans += scans_of(file, given.also if number == 0 else [], locations)
        alone = [one for one in scans if one.parent is None]
        run_inline(alone, store, locations, experiment="calibration")
        found = calibration(scans, store)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
