"""Scans before and after a purification: of which data, for how long, and what the two say.

The scan never helps the purifier. What it finds is for people, and for the scan afterwards, which
measures it again. Nothing here knows a trigger that no scan found.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_ray.api.scan_report import Result
from recipe_ray.base.errors import DataError
from recipe_ray.base.printable import in_a_row, in_markdown
from recipe_ray.data.corpus import Corpus
from recipe_ray.detectors.detector import DETECTORS
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.scan import (
    Fitting,
    ScanStage,
    default_detectors,
    read_scan,
    scan_content,
)
from recipe_ray.stages.stage import Context, Stage
from recipe_ray.store.store import Store

if TYPE_CHECKING:
    from recipe_ray.data.batches import LocalFeed
    from recipe_ray.models.family import PTM
    from recipe_ray.stages.run import Run

# Without clean PTMs of its make, a PTM is called silent if no input moves it by more than so many
# robust z of its own words (of random patches, for images). A clean MiniLM of three layers reached
# 23.6 at most in three scans; triggers of strong backdoors reached 30 to 76 in six layers
SILENT_Z = 25.0
WIDEST = 30  # characters of an input
FOLLOWED = 8  # inputs of the scan before whose scores are shown after
Record = dict[str, Any]


@dataclass(frozen=True)
class Scanning:
    """The scan before, with what fits into the budget; `said` are sentences about it for people."""

    before: ScanStage
    budget_s: float
    said: tuple[str, ...]
    takes_s: float = 0.0  # each time, about

    def after(self, purified: PurifyStage, record: Record) -> ScanStage:
        """Return the same scan of a purified PTM, which measures what was found before as well."""
        found = [
            tuple(suspect["ids"]) for one in record["detectors"] for suspect in _stood_out(one)
        ]
        return self.before.revised(parent=purified, also=tuple(dict.fromkeys(found)))


@dataclass(frozen=True)
class NotScanned:
    """Why a model is not scanned."""

    why: str


def plan_scan(
    stage: PurifyStage, ptm: PTM, store: Store, feed: LocalFeed, budget_s: float
) -> Scanning | NotScanned:
    """Return how `ptm`, which `stage` purifies, can be scanned.

    Held-out data are looked at if there are enough of them, else all. The speed is measured here,
    and decides which detectors fit into the budget.
    """
    family = stage.model
    chosen = [one for one in default_detectors(family.reads) if set(one.needs) <= family.has]
    if not chosen:
        return NotScanned(f"no detector can look at models of family {family.name!r}")
    same = {name: getattr(stage, name) for name in ("model", "parent", "corpus", "seed")}
    same["content"] = scan_content(stage.content, tuple(chosen))
    why = ""
    for held_out in (stage.held_out, 0.0):
        scan = ScanStage(detectors=tuple(chosen), held_out=held_out, **same)
        try:
            fitting = _within(scan, ptm, store, feed, budget_s)
        except DataError as error:
            why = str(error)
            continue
        if fitting.stage is None:
            return NotScanned(f"{_left_out(fitting)} (--scan-budget {budget_s:g})")
        return Scanning(
            fitting.stage, budget_s, _said(fitting, held_out, budget_s), fitting.takes_s
        )
    return NotScanned(why)


def _within(scan: ScanStage, ptm: PTM, store: Store, feed: LocalFeed, budget_s: float) -> Fitting:
    with tempfile.TemporaryDirectory(prefix="recipe-ray-") as folder:
        context = Context(store, feed, feed.locations, LocalRuntime(), Path(folder))
        return scan.within(ptm, context, budget_s)


def _said(fitting: Fitting, held_out: float, budget_s: float) -> tuple[str, ...]:
    assert fitting.stage is not None
    corpus: Corpus = fitting.stage.corpus
    where = "held-out" if held_out else "all"
    names = " and ".join(_shown(one) for one in fitting.stage.detectors)
    seconds = max(1, math.ceil(fitting.takes_s))
    said = [
        f"scan: {names} on {where} {corpus.unit}s, before and after",
        f"scan: about {seconds} s each time; the budget is {budget_s:g} s (--scan-budget)",
    ]
    if fitting.left_out:
        said.append(f"scan: left out: {_left_out(fitting)}")
    if not held_out:
        said.append(f"scan: too few {corpus.unit}s are held out, so all are looked at")
    return tuple(said)


def _shown(detector: Any) -> str:
    whole, own = detector.whole().fields(), detector.fields()
    changed = [f"{name} {own[name]:g}" for name in own if own[name] != whole[name]]
    return f"{detector.name} ({', '.join(changed)})" if changed else str(detector.name)


def _left_out(fitting: Fitting) -> str:
    return "; ".join(
        f"{one.detector.name} needs about {math.ceil(one.takes_s)} s" for one in fitting.left_out
    )


def scanned(
    store: Store, scanning: Scanning, ptm: PTM, run_stage: Callable[[Stage, Run | None], None]
) -> tuple[Record, Callable[[PurifyStage], Record]]:
    """Scan a PTM in memory; return what was found, and the function that scans what is left of it.

    What is left is opened from the store, as those who get it will.
    """

    def scan(stage: ScanStage, run: Run | None = None) -> Record:
        run_stage(stage, run)
        return read_scan(store, stage)

    before = scan(scanning.before, partial(scanning.before.scan, ptm))
    return before, lambda purified: scan(scanning.after(purified, before))


def silent(record: Record) -> bool | None:
    """Tell whether a scan found nothing: by what is normal for clean PTMs, where that is known.

    Else whether all scores of inputs that were only tried are below SILENT_Z. None if no detector
    can tell.
    """
    known = [one for one in map(_silent, record["detectors"]) if one is not None]
    return all(known) if known else None


def _silent(found: Record) -> bool | None:
    if found["suspicious"] is not None:
        return not found["suspicious"]
    scores = _own_scores(found)
    return max(scores.values()) < SILENT_Z if scores else None


def _own_scores(found: Record) -> dict[str, float]:
    own = DETECTORS.get(found["detector"]).own_scale
    return {name: value for name, value in found["highest"].items() if name in own}


def verdict(record: Record) -> str:
    """Return a scan's verdict in words."""
    return Result("", record).said


def suspicious(record: Record) -> bool:
    """Tell whether a score is above what is normal for clean PTMs of this make."""
    return any(one["suspicious"] for one in record["detectors"])


Row = tuple[str, str, str]  # what, before, after


def side_by_side(before: Record, after: Record) -> list[Row]:
    """Return both scans as rows: verdict, highest scores by detector, and what stood out before."""
    rows: list[Row] = [("verdict", verdict(before), verdict(after))]
    pairs = list(zip(before["detectors"], after["detectors"], strict=True))
    for one, other in pairs:
        name = one["detector"]
        if one["suspicion"] is not None or other["suspicion"] is not None:
            shares = [_number(part["suspicion"]) for part in (one, other)]
            rows.append((f"{name}: share of what is normal", shares[0], shares[1]))
        for score, value in one["highest"].items():
            mark = "" if score in _own_scores(one) else " *"
            then = _number(other["highest"].get(score))
            rows.append((f"{name}: {score}{mark}", _number(value), then))
    for one, other in pairs:
        rows += _followed(one, other)
    return rows


def _followed(one: Record, other: Record) -> list[Row]:
    """Return the inputs with the highest scores before, each with the same score after."""
    after = {tuple(suspect["ids"]): suspect["scores"] for suspect in other["suspects"]}
    rows: list[Row] = []
    for suspect in _stood_out(one):
        name, value = max(suspect["scores"].items(), key=lambda item: item[1])
        then = after.get(tuple(suspect["ids"]), {}).get(name)
        shown = in_a_row(suspect["shown"], WIDEST)
        rows.append((f'"{shown}": {name}', _number(value), _number(then)))
    return rows


def _stood_out(found: Record) -> list[Record]:
    """Return the first inputs of a scan that can be measured again: flagged ones if there are."""
    known = [one for one in found["flagged"] or found["suspects"] if one["ids"]]
    return known[:FOLLOWED]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def meaning(before: Record, after: Record, *, trained_for: bool) -> list[str]:
    """Return sentences on what the two scans say, and what they do not.

    `trained_for`: the defense trained away what such detectors find.
    """
    said = []
    quiet = silent(after)
    if verdict(after) == "not calibrated":
        said.append(
            "No clean models of this make were measured, so there is no verdict. Scores are robust "
            "z: how far an input is from what is usual in this model. Those with * are high in "
            "clean models, too, and only their change says something (docs/scan.md)."
        )
        if quiet is not None:
            where = "below" if quiet else "not all below"
            said.append(
                f"Afterwards the scores of inputs that were only tried are {where} {SILENT_Z:g}, "
                "the bound for a model without calibration."
            )
    if quiet and silent(before):
        said.append("The scan was silent before as well: it found nothing to remove.")
    if trained_for:
        said.append(
            "The defense trained away what these detectors find, so a silent scan is what it was "
            "trained for. What triggers still do is seen on a task (--evaluate)."
        )
    said.append(
        "A silent scan does not prove that a model is clean: it says that these detectors found "
        "nothing with these data. Fallen scores show that these inputs do less, not that every "
        "backdoor is gone."
    )
    return said


def table(rows: list[Row]) -> list[str]:
    """Return rows for a terminal of 80 columns."""
    width = max(len(what) for what, *_ in rows)
    sides = [max(len(row[column]) for row in [("", "before", "after"), *rows]) for column in (1, 2)]
    return [
        f"{what:<{width}}  {one:>{sides[0]}}  {other:>{sides[1]}}"
        for what, one, other in [("scan", "before", "after"), *rows]
    ]


def as_markdown(rows: list[Row]) -> list[str]:
    """Return rows as a table of a card; words from outside cannot break it."""
    shown = [(in_markdown(what), one, other) for what, one, other in rows]
    return [
        "| scan | before | after |",
        "|---|---|---|",
        *(f"| {what} | {one} | {other} |" for what, one, other in shown),
    ]


def as_json(scanning: Scanning | NotScanned | None, scans: Mapping[str, Record]) -> Record:
    """Return the scans for `result.json`; `scans` by `before` and `after`."""
    if not isinstance(scanning, Scanning):
        return {"done": False, "why": scanning.why if scanning else "--no-scan"}
    about = {
        "done": True,
        "budget_s": scanning.budget_s,
        "held_out": scanning.before.held_out,
        "detectors": [one.model_dump(mode="json") for one in scanning.before.detectors],
        "silent_z": SILENT_Z,
        "said": list(scanning.said),
    }
    sides = {
        when: {"verdict": verdict(one), "silent": silent(one), **one} for when, one in scans.items()
    }
    return {**about, **sides}
