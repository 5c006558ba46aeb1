"""What a kind of stage measures, shown by the kind's own description of it (`stages/kind.py`).

A kind says which metrics are its columns. A row is a PTM and whatever else tells stages of the kind
apart; a group of columns is a task. Fine-tunings and probes have tables of their own.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.report.stats import Estimate, estimate
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


class MeasuredName(NamedTuple):
    """What stages that may be averaged have in common; `stage`: only if nothing else tells."""

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
    stage: str | None = None


@dataclass(frozen=True)
class MeasuredSummary:
    """One row of a report, seeds pooled; a metric that was not measured is not in `values`."""

    name: MeasuredName
    values: Mapping[str, Estimate]
    seeds: tuple[int, ...]
    stages: tuple[str, ...]


def summarise_measured(results: pa.Table) -> list[MeasuredSummary]:
    """Return one summary a PTM, task and what else has a column, of every kind that is shown so."""
    kinds = shown_as("metrics")
    rows = results.filter(pc.is_in(results["kind"], pa.array(list(kinds), pa.string())))
    groups: dict[MeasuredName, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    columns = {kind: {one.metric for one in shown.columns} for kind, shown in kinds.items()}
    for row in rows.to_pylist():
        if row["metric"] in columns[row["kind"]]:
            name = MeasuredName(*(row[field] for field in MeasuredName._fields[:-1]))
            # cells that share a stage repeat its rows: the same value again
            groups[name][row["stage"]][row["metric"]] = row
    found = []
    for name, stages in groups.items():
        if _are_replicates(stages):
            found.append(_summary(name, stages))
        else:  # they differ in something that has no column: nothing may be averaged
            found += [_summary(name._replace(stage=key), {key: own}) for key, own in stages.items()]
    order = list(kinds)
    return sorted(found, key=lambda one: (order.index(one.name.kind), _order(one.name)))


def _are_replicates(stages: Mapping[str, Mapping[str, Any]]) -> bool:
    first = (next(iter(rows.values())) for rows in stages.values())
    counts = Counter((row["seed"], row["sample_seed"]) for row in first)
    return max(counts.values()) == 1


def _summary(name: MeasuredName, stages: Mapping[str, Mapping[str, Any]]) -> MeasuredSummary:
    values: dict[str, list[float]] = defaultdict(list)
    for _, rows in sorted(stages.items()):
        for metric, row in rows.items():
            values[metric].append(row["value"])
    seeds = {row["seed"] for rows in stages.values() for row in rows.values()}
    pooled = {metric: estimate(found) for metric, found in values.items()}
    return MeasuredSummary(name, pooled, tuple(sorted(seeds)), tuple(sorted(stages)))


def _order(name: MeasuredName) -> tuple[Any, ...]:
    # "none" and nothing first: what comes below is compared with it
    return tuple((value not in (None, "none"), "" if value is None else value) for value in name)


def measured_tables(summaries: Iterable[MeasuredSummary]) -> list[Table]:
    """Return one table an experiment and kind."""
    by_kind: dict[tuple[str, str], list[MeasuredSummary]] = {}
    for one in summaries:
        by_kind.setdefault((one.name.experiment, one.name.kind), []).append(one)
    kinds = shown_as("metrics")
    return [
        _table(experiment, kind, kinds[kind], own) for (experiment, kind), own in by_kind.items()
    ]


def _table(experiment: str, kind: str, shown: Shown, summaries: Sequence[MeasuredSummary]) -> Table:
    several = (f for f in _SOMETIMES if len({getattr(one.name, f) for one in summaries}) > 1)
    names = (*_ALWAYS, *several)
    rows: dict[tuple[Any, ...], dict[str, MeasuredSummary]] = {}
    for one in summaries:
        own = tuple(getattr(one.name, field) for field in names)
        rows.setdefault(own, {})[one.name.task or kind] = one
    groups = sorted({one.name.task or kind for one in summaries})
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
