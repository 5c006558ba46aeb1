"""What a kind of stage measures, shown by the kind's own description of it (`stages/kind.py`).

A kind says which metrics are its columns. A row is a PTM and all else that tells stages of the kind
apart; a group of columns is a task. Fine-tunings and probes have tables of their own.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

from recipe_ray.report.stats import Estimate, Row, estimate, grouped
from recipe_ray.report.tables import (
    ABSENT,
    Column,
    Table,
    estimate_text,
    range_text,
    setting_text,
)
from recipe_ray.stages.kind import Shown, ShownMetric
from recipe_ray.stages.stage import shown_as

_ALWAYS = ("model", "attack", "defense")
_SOMETIMES = ("aux", "aux_size", "weight_factor", "epoch", "trigger", "label", "stage")
_LARGE = 1000.0  # from here on numbers have no decimals


@dataclass(frozen=True)
class MeasuredName:
    """What stages that may be averaged have in common."""

    experiment: str
    kind: str
    model: str
    attack: str
    defense: str
    aux: str | None
    aux_size: int | None
    weight_factor: float | None
    task: str | None
    epoch: int | None
    trigger: str | None
    label: int | None


@dataclass(frozen=True)
class MeasuredSummary(MeasuredName):
    """One row of a report, seeds pooled; a metric that was not measured is not in `values`.

    `stage` is None unless nothing else tells rows apart.
    """

    stage: str | None
    values: Mapping[str, Estimate]
    seeds: tuple[int, ...]
    stages: tuple[str, ...]


def summarise_measured(results: pa.Table) -> list[MeasuredSummary]:
    """Return one summary per PTM, task and other column, for every kind that is shown so."""
    columns = {
        kind: [one.metric for one in shown.columns] for kind, shown in shown_as("metrics").items()
    }
    found = []
    for name, stages in grouped(results, columns, MeasuredName).items():
        if _are_replicates(stages):
            found.append(_summary(name, None, stages))
        else:  # they differ in something that has no column: nothing may be averaged
            found += [_summary(name, stage, {stage: rows}) for stage, rows in stages.items()]
    order = list(columns)
    return sorted(found, key=lambda one: (order.index(one.kind), _order(one)))


def _are_replicates(stages: Mapping[str, Sequence[Row]]) -> bool:
    counts = Counter((rows[0]["seed"], rows[0]["sample_seed"]) for rows in stages.values())
    return max(counts.values()) == 1


def _summary(
    name: MeasuredName, stage: str | None, stages: Mapping[str, Sequence[Row]]
) -> MeasuredSummary:
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for key, rows in sorted(stages.items()):
        for row in rows:
            values[row["metric"]][key] = row["value"]
    seeds = {row["seed"] for rows in stages.values() for row in rows}
    return MeasuredSummary(
        **vars(name),
        stage=stage,
        values={metric: estimate([*by_stage.values()]) for metric, by_stage in values.items()},
        seeds=tuple(sorted(seeds)),
        stages=tuple(sorted(stages)),
    )


def _order(one: MeasuredSummary) -> tuple[Any, ...]:
    # "none" and nothing first: the rows below are compared with it
    named = (*(getattr(one, field.name) for field in fields(MeasuredName)), one.stage)
    return tuple((value not in (None, "none"), "" if value is None else value) for value in named)


def measured_tables(summaries: Iterable[MeasuredSummary]) -> list[Table]:
    """Return one table per experiment and kind."""
    by_kind: dict[tuple[str, str], list[MeasuredSummary]] = {}
    for one in summaries:
        by_kind.setdefault((one.experiment, one.kind), []).append(one)
    kinds = shown_as("metrics")
    return [
        _table(experiment, kind, kinds[kind], own) for (experiment, kind), own in by_kind.items()
    ]


def _table(experiment: str, kind: str, shown: Shown, summaries: Sequence[MeasuredSummary]) -> Table:
    several = (f for f in _SOMETIMES if len({getattr(one, f) for one in summaries}) > 1)
    names = (*_ALWAYS, *several)
    rows: dict[tuple[Any, ...], dict[str, MeasuredSummary]] = {}
    for one in summaries:
        own = tuple(getattr(one, field) for field in names)
        rows.setdefault(own, {})[one.task or kind] = one
    groups = sorted({one.task or kind for one in summaries})
    return Table(
        f"{experiment}: {kind}",
        (
            *(Column("", field) for field in (*names, "seeds")),
            *(Column(group, metric.title) for group in groups for metric in shown.columns),
        ),
        tuple(
            (
                *map(setting_text, own),
                range_text(len(one.stages) for one in by_group.values()),
                *(_field(by_group.get(g), metric) for g in groups for metric in shown.columns),
            )
            for own, by_group in rows.items()
        ),
        shown.explanation,
    )


def _field(summary: MeasuredSummary | None, metric: ShownMetric) -> str:
    value = summary.values.get(metric.metric) if summary is not None else None
    if metric.unit == "percent":
        return estimate_text(value)
    if value is None:
        return ABSENT
    return _number(value.mean) + ("" if value.margin is None else f" ±{_number(value.margin)}")


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= _LARGE or value.is_integer() else f"{value:.3g}"
