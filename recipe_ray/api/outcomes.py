"""What the functions of `recipe_ray` return: frozen, with rows as Arrow or pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_ray.base.errors import SpecError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from recipe_ray.api.scan_report import Result
    from recipe_ray.report.load import Recorded
    from recipe_ray.report.stats import Estimate


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Rows of one kind; `warnings` are what the command would warn of."""

    rows: pa.Table = field(repr=False, compare=False)
    warnings: tuple[str, ...] = ()

    def to_arrow(self) -> pa.Table:
        """Return the rows as an Arrow table."""
        return self.rows

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a data frame; raise SpecError if pandas is not installed."""
        try:
            frame: pd.DataFrame = self.rows.to_pandas()
        except ModuleNotFoundError as error:
            raise SpecError(
                f"to_pandas: {error.name} is not installed; pip install pandas, or use to_arrow()"
            ) from error
        return frame


@dataclass(frozen=True, kw_only=True)
class ScannedModel:
    """One scanned model: `suspicious` is None without a verdict, `error` says why it failed.

    `record` is what the detectors found, as `recipe-ray scan --json` has it.
    """

    model: str
    verdict: str
    suspicious: bool | None
    error: str | None
    record: Mapping[str, Any] | None = field(repr=False)

    @classmethod
    def of(cls, one: Result) -> ScannedModel:
        """Return what a scan found in one model."""
        known = [verdict for verdict in one.verdicts if verdict is not None]
        return cls(
            model=one.model,
            verdict=one.said,
            suspicious=any(known) if known else None,
            error=one.error,
            record=one.record,
        )


@dataclass(frozen=True, kw_only=True)
class ScanOutcome(Outcome):
    """Scans of models in the order given.

    Rows: one per model, detector and input with a high score (`input`, `score`, `value` in robust
    z), `flagged` if no clean model of this make reaches it. `exit_code` is that of the command.
    """

    models: tuple[ScannedModel, ...]
    exit_code: int

    @classmethod
    def of(cls, found: Sequence[Result], exit_code: int) -> ScanOutcome:
        """Return what scans found, and the command's exit code."""
        errors = tuple(f"{one.model}: {one.error}" for one in found if one.error is not None)
        models = tuple(map(ScannedModel.of, found))
        return cls(rows=_scores(found), warnings=errors, models=models, exit_code=exit_code)

    @property
    def suspicious(self) -> bool | None:
        """Whether any model is; None if none has a verdict."""
        known = [one.suspicious for one in self.models if one.suspicious is not None]
        return any(known) if known else None


@dataclass(frozen=True, kw_only=True)
class PurifyOutcome(Outcome):
    """A purified model in `folder`, with its card.

    `exit_code`: 0 clean as far as can be told, 3 harm is likely, 4 the scan is not silent.
    `result` is the content of result.json (docs/purify.md). Rows: `metric`, `value`.
    """

    folder: Path
    exit_code: int
    notes: tuple[str, ...]
    result: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Evaluation(Outcome):
    """A fine-tuned descendant's rates, as fractions.

    `aasr`, `masr` are None and `asr` is empty without triggers; `asr` is by trigger, that of its
    best label. Rows: those of the store (`metric`, `trigger`, `label`, `value`, `numerator`,
    `denominator` and what identifies the stage).
    """

    model: str
    acc: float
    aasr: float | None
    masr: float | None
    asr: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Comparison(Outcome):
    """Models that were fine-tuned in the same way.

    `sides`: by A, B and floor, means and 95 % intervals over seeds by metric (`acc`, `aasr`,
    `masr`, `asr TRIGGER`), as fractions. Rows: `side`, `model`, `metric`, `mean`, `low`, `high`
    (None if n is 1), `n`.
    """

    sides: Mapping[str, Mapping[str, Estimate]]

    def change(self, metric: str) -> float:
        """Return the mean of B minus that of A; raise SpecError for a metric they do not have."""
        one, other = (self.sides[side].get(metric) for side in ("A", "B"))
        if one is None or other is None:
            from recipe_ray.base.errors import unknown

            raise SpecError(unknown("metric", metric, self.sides["A"]))
        return other.mean - one.mean


@dataclass(frozen=True, kw_only=True)
class RunOutcome(Outcome):
    """What became of an experiment: keys of stages done now, there before, or failed (why).

    Rows: those of the experiment, as `results` returns them.
    """

    experiment: str
    store: str
    done: tuple[str, ...]
    skipped: tuple[str, ...]
    failed: Mapping[str, str]
    wall_s: float


@dataclass(frozen=True, kw_only=True)
class Results(Outcome):
    """All rows of a store's experiments (docs/report.md has the columns), rates as fractions.

    `plans`: by experiment, its cells and stages; None if only rows were kept.
    """

    plans: Mapping[str, Mapping[str, Any] | None] = field(repr=False)
    recorded: tuple[Recorded, ...] = field(repr=False)

    def tables(self) -> list[Mapping[str, Any]]:
        """Return `cells` of `recipe-ray report --json`: rates over seeds, floors, the paper's."""
        import json

        from recipe_ray.report.json_report import as_json
        from recipe_ray.report.sections import sections

        cells: list[Mapping[str, Any]] = json.loads(as_json(sections(list(self.recorded))))["cells"]
        return cells


def _scores(found: Sequence[Result]) -> pa.Table:
    import pyarrow as pa

    rows = []
    for result in found:
        for detector in result.record["detectors"] if result.record is not None else ():
            flagged = [suspect["shown"] for suspect in detector["flagged"]]
            for suspect in detector["suspects"]:
                about = {"model": result.model, "detector": detector["detector"]}
                about |= {"input": suspect["shown"], "flagged": suspect["shown"] in flagged}
                scores = suspect["scores"].items()
                rows += [{**about, "score": score, "value": float(v)} for score, v in scores]
    text = pa.string()
    columns = [("model", text), ("detector", text), ("input", text), ("flagged", pa.bool_())]
    schema = pa.schema([*columns, ("score", text), ("value", pa.float64())])
    return pa.Table.from_pylist(rows, schema=schema)
