"""Probes summarised: which neurons a trigger activates (paper, Figure 2 and Table 10).

A probe takes a task's texts with and without one trigger. `overlap` is A / B: neurons active on
clean and on poisoned texts, of those active on poisoned ones.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.report.estimate import Estimate, estimate
from recipe_ray.report.results import CLEAN

OVERLAP, POISONED_ONLY = "overlap", "poisoned_only_neurons"


class ProbeName(NamedTuple):
    """What probes that may be averaged have in common."""

    experiment: str
    model: str
    attack: str
    defense: str
    aux: str | None
    aux_size: int | None
    weight_factor: float | None
    task: str
    trigger: str


@dataclass(frozen=True)
class ProbeSummary:
    """One PTM, task and trigger, seeds pooled; None where it was not measured.

    `poisoned_only` counts neurons active on poisoned texts only; `share` is of all neurons.
    """

    experiment: str
    model: str
    attack: str
    defense: str
    aux: str | None
    aux_size: int | None
    weight_factor: float | None
    task: str
    trigger: str
    overlap: Estimate | None
    poisoned_only: Estimate | None
    share: Estimate | None
    seeds: tuple[int, ...]
    stages: tuple[str, ...]


def summarise_probes(results: pa.Table) -> list[ProbeSummary]:
    """Return one summary a PTM, task and trigger, sorted by name."""
    wanted = pc.and_(
        pc.equal(results["kind"], "probe"),
        pc.is_in(results["metric"], pa.array([OVERLAP, POISONED_ONLY])),
    )
    # by stage: cells that share one repeat its rows
    groups: dict[ProbeName, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for row in results.filter(wanted).to_pylist():
        name = ProbeName(*(row[field] for field in ProbeName._fields))
        groups[name][row["stage"]][row["metric"]] = row
    found = [_summary(name, stages) for name, stages in groups.items()]
    return sorted(found, key=_order)


def by_attack(probes: Iterable[ProbeSummary]) -> list[tuple[str, str, ProbeSummary]]:
    """Return (attack, state of the PTM, probe), clean PTMs beside each attack with its trigger.

    The state is "backdoored", "purified", "clean" or "clean, purified". A clean PTM with whose
    texts and trigger no attack was probed stands under its own attack, "none".
    """
    found = list(probes)
    attacked = [probe for probe in found if probe.attack != CLEAN]
    placed = [(probe.attack, _state(probe), probe) for probe in attacked]
    for probe in found:
        if probe.attack == CLEAN:
            alike = (other.attack for other in attacked if _same_texts(other, probe))
            attacks = dict.fromkeys(alike) or {CLEAN: None}
            placed += [(attack, _state(probe), probe) for attack in attacks]
    return placed


def _same_texts(one: ProbeSummary, other: ProbeSummary) -> bool:
    names = [(p.experiment, p.model, p.task, p.trigger) for p in (one, other)]
    return names[0] == names[1]


def _state(probe: ProbeSummary) -> str:
    attacked, defended = probe.attack != CLEAN, probe.defense != CLEAN
    if attacked:
        return "purified" if defended else "backdoored"
    return "clean, purified" if defended else "clean"


def _summary(name: ProbeName, stages: dict[str, dict[str, Any]]) -> ProbeSummary:
    ordered = sorted(stages.items())
    overlaps = [rows[OVERLAP] for _, rows in ordered if OVERLAP in rows]
    counts = [rows[POISONED_ONLY] for _, rows in ordered if POISONED_ONLY in rows]
    shares = [row["value"] / row["denominator"] for row in counts if row["denominator"]]
    return ProbeSummary(
        **name._asdict(),
        overlap=_pooled(row["value"] for row in overlaps),
        poisoned_only=_pooled(row["value"] for row in counts),
        share=_pooled(shares),
        seeds=tuple(sorted({row["seed"] for row in (*overlaps, *counts)})),
        stages=tuple(stage for stage, _ in ordered),
    )


def _pooled(values: Iterable[float]) -> Estimate | None:
    present = list(values)
    return estimate(present) if present else None


def _order(probe: ProbeSummary) -> tuple[Any, ...]:
    named = ((name != CLEAN, name) for name in (probe.attack, probe.defense))
    return (
        probe.experiment,
        probe.model,
        *named,
        probe.aux or "",
        probe.aux_size or 0,
        probe.weight_factor or 0.0,
        probe.task,
        probe.trigger,
    )
