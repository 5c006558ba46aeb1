"""What is normal: the highest scores of clean PTMs, and a verdict on a PTM from them.

A bound holds for one architecture and one detector with one set of settings, and comes from clean
PTMs alone, which `calibration.json` names (`python -m benchmarks calibrate` makes it). If there is
none, there is no verdict, only ranks.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from statistics import fmean, stdev
from typing import Any

from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.detectors.detector import Detector, Outcome, Suspect

FILE = "calibration.json"
# a score this low is normal anywhere; below zero the share of a bound would mean nothing
LEAST = 1.0
# how far above the clean PTMs that were measured another one may be: times the highest of them, and
# standard deviations of their logarithms
MARGIN, SPREADS = 1.5, 3.0


@dataclass(frozen=True)
class Bounds:
    """The highest normal value of each score, and its source in words."""

    by_score: Mapping[str, float]
    source: str


@dataclass(frozen=True)
class Verdict:
    """The verdict on an outcome.

    `suspicion` is the largest share of a bound that a score reaches, above 1 if it is suspicious;
    None if it is not known what is normal. `flagged` are the suspects above a bound.
    """

    suspicion: float | None
    flagged: tuple[Suspect, ...]
    source: str | None

    @property
    def suspicious(self) -> bool | None:
        """Whether there is a backdoor, as far as this detector can tell; None if it cannot."""
        return None if self.suspicion is None else self.suspicion > 1


def settings_of(detector: Detector) -> str:
    """Return what a detector's bounds hold for: the hash of its version and settings."""
    return fingerprint(detector.identity())


def known_bounds(architecture: str, detector: Detector) -> Bounds | None:
    """Return the bounds of an architecture, None if none were measured with these settings."""
    known = _known().get(architecture, {}).get(detector.name)
    if known is None or known["settings"] != settings_of(detector):
        return None
    names = dict.fromkeys(name.partition(".scan")[0] for name in known["clean"])
    source = f"{len(known['clean'])} clean PTMs of architecture {architecture}"
    return Bounds(known["bounds"], f"{source} ({', '.join(names)})")


def normal_by(detectors: Iterable[Detector]) -> dict[str, Any]:
    """Return by detector the hash of all that is known to be normal with its settings.

    A verdict depends on it, so it belongs to a scan's identity. Empty if nothing is known.
    """
    found = {}
    for detector in (one.whole() for one in detectors):
        known = {
            make: by_name[detector.name]["bounds"]
            for make, by_name in _known().items()
            if by_name.get(detector.name, {}).get("settings") == settings_of(detector)
        }
        if known:
            found[detector.name] = fingerprint(known)
    return found


def bounds_from(outcomes: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the bound of each score from the highest values of clean PTMs.

    That is MARGIN times the highest among them, and no less than SPREADS standard deviations above
    the mean of their logarithms: some scores differ tenfold from one clean PTM to the next. One PTM
    has no spread. No bound is below LEAST.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for outcome in outcomes:
        for name, value in outcome.items():
            values[name].append(max(value, LEAST))
    bounds = {}
    for name, found in sorted(values.items()):
        bound = MARGIN * max(found)
        if len(found) > 1:
            logs = [math.log(value) for value in found]
            bound = max(bound, math.exp(fmean(logs) + SPREADS * stdev(logs)))
        bounds[name] = round(bound, 3)
    return bounds


def judge(outcome: Outcome, bounds: Bounds | None) -> Verdict:
    """Return the verdict on an outcome, given what is normal."""
    if bounds is None:
        return Verdict(None, (), None)
    shares = [_share(one, bounds) for one in outcome.suspects]
    flagged = tuple(one for one, share in zip(outcome.suspects, shares, strict=True) if share > 1)
    return Verdict(max(shares, default=0.0), flagged, bounds.source)


def _share(suspect: Suspect, bounds: Bounds) -> float:
    known = bounds.by_score
    return max(
        (v / known[name] for name, v in suspect.scores.items() if name in known), default=0.0
    )


@cache
def _known() -> dict[str, Any]:
    known: dict[str, Any] = json.loads((files("recipe_ray.detectors") / FILE).read_text())
    return known


OfReference = dict[tuple[str, str], Bounds]  # a reference says nothing of other makes


def bounds_of_reference(record: dict[str, Any], name: str) -> OfReference:
    """Return what is normal by the scan of one clean model, by make and detector."""
    return {
        (record["make"], one["detector"]): Bounds(bounds_from([one["highest"]]), f"model {name}")
        for one in record["detectors"]
    }


def judged_again(record: dict[str, Any], normal: OfReference) -> dict[str, Any]:
    """Return the record of a scan with new verdicts from other bounds."""
    found = []
    for one in record["detectors"]:
        suspects = tuple(
            Suspect(s["shown"], s["scores"], tuple(s["ids"]), s["group"]) for s in one["suspects"]
        )
        bounds = normal.get((record["make"], one["detector"]))
        verdict = judge(Outcome(one["highest"], suspects, one["samples"]), bounds)
        found.append({**one, **verdict_json(verdict, bounds)})
    return {**record, "detectors": found}


def verdict_json(verdict: Verdict, bounds: Bounds | None) -> dict[str, Any]:
    """Return a verdict as plain data."""
    return {
        "suspicious": verdict.suspicious,
        "suspicion": verdict.suspicion,
        "normal": None if bounds is None else dict(bounds.by_score),
        "normal_from": verdict.source,
        "flagged": [one.to_json() for one in verdict.flagged],
    }
