"""Stage `scan`: label-free search for a backdoor in a PTM. It holds detectors and unlabelled data.

The artifact has no model. It has `scan.json`: what was found, what is normal, and the verdict.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from recipe_ray.base.errors import SpecError
from recipe_ray.base.spec import HASHED_WHEN_SET, Spec
from recipe_ray.data.batches import Part, Workbench
from recipe_ray.data.corpus import AnyCorpus
from recipe_ray.detectors.calibration import (
    Bounds,
    Verdict,
    judge,
    known_bounds,
    normal_by,
    verdict_json,
)
from recipe_ray.detectors.detector import DETECTORS, AnyDetector, Detector, Outcome, Subject
from recipe_ray.models.family import PTM, Capability
from recipe_ray.stages.kind import Point, Shown, ShownMetric
from recipe_ray.stages.stage import STAGES, Context, Stage
from recipe_ray.store.rows import Measurement
from recipe_ray.store.store import Store

RESULT = "scan.json"
SUSPICION = "suspicion"  # the metric; with a detector's name after a dot, that detector's
SHOWN = 64  # suspects that are kept of each detector


class Scan(Spec):
    """How a PTM is looked at."""

    corpus: AnyCorpus
    detectors: tuple[AnyDetector, ...] = Field(
        (), description="empty: every detector for the model's kind of data"
    )
    verdict: bool = Field(
        True,
        description="False: only scores, from which a calibration is made",
        json_schema_extra=HASHED_WHEN_SET,
    )


class ScanGrid(Spec):
    """What a block of the grid says of it."""

    scans: tuple[Scan, ...] = Field((), description="scans of the PTM, without triggers or labels")


@STAGES.register("scan")
class ScanStage(Stage, Scan):
    """Looks for a backdoor in a PTM with label-free detectors."""

    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="only this last share of the corpus is looked at, as a purify stage holds it "
        "out; 0: all of it",
        json_schema_extra=HASHED_WHEN_SET,
    )
    also: tuple[tuple[int, ...], ...] = Field(
        (),
        description="token ids that are measured as well, such as what an earlier scan found",
        json_schema_extra=HASHED_WHEN_SET,
    )

    rank: ClassVar[int] = 60
    grid: ClassVar[type[Spec]] = ScanGrid
    cells: ClassVar[str] = "scans"
    shown: ClassVar[Shown | None] = Shown(
        (
            ShownMetric(SUSPICION, "suspicion", "number"),
            ShownMetric("suspicious", "suspicious"),
            ShownMetric("flagged", "inputs flagged", "number"),
            ShownMetric("vectors", "vectors", "number"),
        ),
        explanation="suspicion above 1: some input does more than any does to clean PTMs",
    )

    @classmethod
    def planned(cls, point: Point, ptm: Stage | None) -> Iterator[Stage | None]:
        """Yield the scan of the PTM."""
        scan: Scan = point.entry
        chosen = scan.detectors or default_detectors(point.model.reads)
        content = scan_content(point.content(scan.corpus), chosen if scan.verdict else ())
        fields = {**scan.fields(), "detectors": chosen, "seed": point.seed}
        yield point.make(cls, content=content, parent=ptm, **fields)

    @model_validator(mode="after")
    def _check_detectors(self) -> Self:
        if not self.detectors:
            raise SpecError(f"detectors: no detector reads {self.model.reads}s")
        return self

    def run(self, context: Context) -> list[Measurement]:
        """Return the highest scores, and what they come to by what is normal."""
        return self.scan(self.input_ptm(context), context)

    def scan(self, ptm: PTM, context: Context) -> list[Measurement]:
        """Do the same with a PTM in memory, whose weights stay as they are."""
        subject, bench = self._subject(ptm, context)
        make, found = subject.ptm.make, []
        for detector in self.detectors:
            started = time.monotonic()
            outcome = detector.search(subject, bench)
            subject = replace(subject, leads=(*subject.leads, *outcome.suspects))
            bounds = known_bounds(make, detector.whole()) if self.verdict else None
            verdict = judge(outcome, bounds)
            found.append((detector, outcome, verdict, bounds, time.monotonic() - started))
        if context.runtime.rank == 0:
            whole = {
                "make": make,
                "data": self.corpus.label(),
                "detectors": [_as_json(*one, self.also) for one in found],
            }
            (context.folder / RESULT).write_text(json.dumps(whole, indent=1, ensure_ascii=False))
        return [
            row for detector, outcome, verdict, *_ in found for row in _rows(detector, outcome)
        ] + _overall([(detector, verdict) for detector, _, verdict, *_ in found])

    def within(self, ptm: PTM, context: Context, budget_s: float) -> "Fitting":
        """Return the scan with what its detectors can do with `ptm` in about so many seconds.

        Their speed is measured here. The result depends on it only through the detectors that are
        chosen, which are part of the scan's key. Raises DataError for too few data.
        """
        subject, bench = self._subject(ptm, context)
        chosen: list[Detector] = []
        left_out = []
        planned_s = 0.0
        for detector in self.detectors:
            fitted, takes_s = detector.fitted(subject, bench, budget_s - planned_s)
            if fitted is None:
                left_out.append(LeftOut(detector, takes_s))
                continue
            chosen.append(fitted)
            planned_s += takes_s
        stage = self.revised(detectors=tuple(chosen)) if chosen else None
        return Fitting(stage, planned_s, tuple(left_out))

    def _subject(self, ptm: PTM, context: Context) -> tuple[Subject, Workbench]:
        part = Part(1.0 - self.held_out, 1.0) if self.held_out else Part()
        subject = Subject(ptm, self.corpus, self.own_head, part=part, also=self.also)
        return subject, Workbench(context.feed, context.runtime, self.seed)

    def needs(self) -> list[tuple[str, tuple[Capability, ...]]]:
        """Return what the detectors need."""
        return [(f"detector {one.label()!r}", one.needs) for one in self.detectors]

    def reads(self) -> list[tuple[str, str]]:
        """Return what the detectors read."""
        return [
            (f"detector {one.label()!r} reads {one.reads}s", one.reads) for one in self.detectors
        ]

    def own_columns(self) -> dict[str, Any]:
        """Return the data."""
        return {"aux": self.corpus.label(), "aux_size": self.corpus.size}

    def default_label(self) -> str:
        """Return what was scanned."""
        before = self.parent.label() if self.parent is not None else self.model.label()
        return f"{before}.scan"


def scan_content(corpus: dict[str, Any], detectors: tuple[Detector, ...]) -> dict[str, Any]:
    """Return what a scan depends on beyond its fields: its data, and what is known to be normal."""
    normal = normal_by(detectors)
    return {"corpus": corpus, **({"normal": normal} if normal else {})}


@dataclass(frozen=True)
class LeftOut:
    """A detector that does not fit into a budget, and about how many seconds the least takes."""

    detector: Detector
    takes_s: float


@dataclass(frozen=True)
class Fitting:
    """A scan that fits into a budget and about how long it takes; None: no detector fits."""

    stage: ScanStage | None
    takes_s: float
    left_out: tuple[LeftOut, ...]


def read_scan(store: Store, stage: ScanStage) -> dict[str, Any]:
    """Return what a committed scan found."""
    record: dict[str, Any] = json.loads(
        (store.fetch(stage.artifact) / RESULT).read_text(encoding="utf-8")
    )
    return record


def default_detectors(reads: str) -> tuple[Detector, ...]:
    """Return every detector that reads texts, or images, with its own settings, in their order."""
    known = [DETECTORS.get(name) for name in DETECTORS]
    fitting = [one for one in known if one.reads == reads]
    return tuple(one() for one in sorted(fitting, key=lambda one: (one.rank, one.name)))


def _rows(detector: Detector, outcome: Outcome) -> list[Measurement]:
    return [
        Measurement(f"scan.{detector.name}.{name}", float(value))
        for name, value in outcome.highest.items()
    ]


def _overall(found: list[tuple[Detector, Verdict]]) -> list[Measurement]:
    """Return the suspicion, and how many inputs and vectors were flagged, if there are bounds."""
    known = {one.name: verdict for one, verdict in found if verdict.suspicion is not None}
    if not known:
        return []
    by_detector = {name: float(verdict.suspicion or 0) for name, verdict in known.items()}
    flagged = sum(len(one.flagged) for one in known.values())
    vectors = sum(len({suspect.group for suspect in one.flagged}) for one in known.values())
    most = max(by_detector.values())
    return [
        Measurement(SUSPICION, most),
        *(Measurement(f"{SUSPICION}.{name}", value) for name, value in by_detector.items()),
        Measurement("suspicious", float(most > 1)),
        Measurement("flagged", float(flagged)),
        Measurement("vectors", float(vectors)),
    ]


def _as_json(
    detector: Detector,
    outcome: Outcome,
    verdict: Verdict,
    bounds: Bounds | None,
    wall_s: float,
    also: tuple[tuple[int, ...], ...],
) -> Mapping[str, Any]:
    first, others = outcome.suspects[:SHOWN], outcome.suspects[SHOWN:]
    shown = [*first, *(one for one in others if one.ids in also)]
    return {
        "detector": detector.name,
        **verdict_json(verdict, bounds),
        "highest": dict(outcome.highest),
        "suspects": [one.to_json() for one in shown],
        "not_measured": dict(outcome.not_measured),
        "samples": outcome.samples,
        "wall_s": round(wall_s, 1),
    }
