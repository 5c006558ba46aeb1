"""Result rows summarised by cell, seeds pooled, the clean PTM's ASR as the floor; probes likewise.

Fractions throughout; percentages are made when rendering. A probe takes a task's texts with and
without one trigger (paper, Figure 2 and Table 10). `overlap` is A / B: neurons active on clean and
on poisoned texts, of those active on poisoned ones.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from recipe_ray.base.errors import UserError
from recipe_ray.learn.metrics import MAJORITY, learned
from recipe_ray.report.stats import Estimate, estimate
from recipe_ray.stages.stage import shown_as

CLEAN = "none"
METRICS = ("acc", MAJORITY, "asr", "aasr", "masr")
SETTINGS = ("aux", "aux_size", "weight_factor", "epoch")


class CellName(NamedTuple):
    """What trials that may be averaged have in common."""

    experiment: str
    model: str
    attack: str
    defense: str
    aux: str | None
    aux_size: int | None
    weight_factor: float | None
    task: str
    epoch: int | None


@dataclass(frozen=True)
class Share:
    """A measured fraction and its counts, None where the rows have none."""

    value: float
    numerator: float | None = None
    denominator: float | None = None


@dataclass(frozen=True)
class SeedResult:
    """One fine-tuning: a cell at one seed; `asr` is by (trigger, label).

    Trials of the same `comparison` differ only in what was done to the PTM, in triggers and seed.
    `majority` is the largest class's share of the test set, None where the rows do not say it;
    `at_chance` that ACC is not above it, so that ASR says nothing.
    """

    stage: str
    comparison: str
    seed: int
    sample_seed: int | None
    acc: Share | None
    aasr: float | None
    masr: float | None
    asr: Mapping[tuple[str, int], Share]
    majority: Share | None = None
    at_chance: bool = False

    @property
    def triggers(self) -> frozenset[str]:
        """The triggers that were tried."""
        return frozenset(trigger for trigger, _ in self.asr)

    def asr_of(self, triggers: Iterable[str]) -> list[float]:
        """Return ASR(t) = max over labels, for each trigger."""
        return [max(s.value for (t, _), s in self.asr.items() if t == name) for name in triggers]


@dataclass(frozen=True)
class CellSummary:
    """One row of a report: everything but the seed alike; None where it was not measured.

    The floors are the clean, undefended PTM's ASR on the same triggers, `clean_acc` its ACC, both
    averaged over seeds and wherever in the store it was fine-tuned alike. `at_chance` are the seeds
    of trials that are at chance, `floor_at_chance` those of the clean PTM's, which the floors
    leave out.
    """

    experiment: str
    model: str
    attack: str
    defense: str
    aux: str | None
    aux_size: int | None
    weight_factor: float | None
    task: str
    epoch: int | None
    acc: Estimate | None
    aasr: Estimate | None
    masr: Estimate | None
    clean_acc: float | None
    floor_aasr: float | None
    floor_masr: float | None
    seeds: tuple[int, ...]
    trials: tuple[SeedResult, ...]
    at_chance: tuple[int, ...] = ()
    floor_at_chance: tuple[int, ...] = ()


def summarise(results: pa.Table) -> list[CellSummary]:
    """Return one summary a cell and task, seeds pooled, sorted by name with "none" first.

    Give the rows of all experiments: a cell's floor is looked for in every one of them.
    Raises UserError where two stages claim the same cell and seed.
    """
    groups = _trials_by_cell(results)
    clean: dict[str, dict[str, SeedResult]] = defaultdict(dict)
    for cell, trials in groups.items():
        _refuse_twins(cell, trials)
        if cell.attack == CLEAN and cell.defense == CLEAN:
            for trial in trials:  # experiments share stages: each counts once
                clean[trial.comparison][trial.stage] = trial
    summaries = [
        _summary(cell, trials, [clean[name] for name in sorted({t.comparison for t in trials})])
        for cell, trials in groups.items()
    ]
    return sorted(summaries, key=_order)


def _trials_by_cell(results: pa.Table) -> dict[CellName, list[SeedResult]]:
    kinds = pa.array(list(shown_as("attack success")), pa.string())
    wanted = pc.and_(
        pc.is_in(results["kind"], kinds), pc.is_in(results["metric"], pa.array(METRICS))
    )
    rows_by_stage: dict[tuple[CellName, str], list[dict[str, Any]]] = defaultdict(list)
    for row in results.filter(wanted).to_pylist():
        cell = CellName(*(row[field] for field in CellName._fields))
        rows_by_stage[cell, row["stage"]].append(row)
    groups: dict[CellName, list[SeedResult]] = defaultdict(list)
    for (cell, stage), rows in rows_by_stage.items():
        groups[cell].append(_trial(stage, rows))
    return {cell: sorted(trials, key=_replicate) for cell, trials in groups.items()}


def _trial(stage: str, rows: Sequence[dict[str, Any]]) -> SeedResult:
    # cells that share a stage repeat its rows: the same value again
    single = {row["metric"]: _share(row) for row in rows if row["metric"] != "asr"}
    asr = {(row["trigger"], row["label"]): _share(row) for row in rows if row["metric"] == "asr"}
    aasr, masr = single.get("aasr"), single.get("masr")
    known = learned(rows)
    return SeedResult(
        stage=stage,
        comparison=rows[0]["comparison"],
        seed=rows[0]["seed"],
        sample_seed=rows[0]["sample_seed"],
        acc=single.get("acc"),
        aasr=aasr.value if aasr else None,
        masr=masr.value if masr else None,
        asr=asr,
        majority=Share(known.majority.value, *astuple(known.majority)) if known else None,
        at_chance=known is not None and known.at_chance,
    )


def _share(row: dict[str, Any]) -> Share:
    return Share(row["value"], row["numerator"], row["denominator"])


def _replicate(trial: SeedResult) -> tuple[int, int]:
    return trial.seed, -1 if trial.sample_seed is None else trial.sample_seed


def _refuse_twins(cell: CellName, trials: Sequence[SeedResult]) -> None:
    (seeds, count), *_ = Counter(map(_replicate, trials)).most_common(1)
    if count > 1:
        stages = ", ".join(trial.stage for trial in trials if _replicate(trial) == seeds)
        raise UserError(
            f"{cell.experiment}: stages {stages} all claim {'/'.join(map(str, cell))} at seed "
            f"{seeds[0]}. They differ in something that has no column in the results, perhaps "
            "because the experiment was changed; report the stages of its present plan only"
        )


def _summary(
    cell: CellName, trials: Sequence[SeedResult], clean: Sequence[Mapping[str, SeedResult]]
) -> CellSummary:
    triggers = frozenset[str]().union(*(trial.triggers for trial in trials))
    alike = [trial for by_stage in clean for _, trial in sorted(by_stage.items())]
    # a clean PTM is tried with other attacks' triggers too: this floor needs only the cell's own
    covering = _one_a_seed(trial for trial in alike if triggers and triggers <= trial.triggers)
    floors = [trial.asr_of(triggers) for trial in covering if not trial.at_chance]
    accs = [trial.acc.value for trial in covering or _one_a_seed(alike) if trial.acc]
    return CellSummary(
        **cell._asdict(),
        acc=_pooled(trial.acc.value if trial.acc else None for trial in trials),
        aasr=_pooled(trial.aasr for trial in trials),
        masr=_pooled(trial.masr for trial in trials),
        clean_acc=fmean(accs) if accs else None,
        floor_aasr=fmean(map(fmean, floors)) if floors else None,
        floor_masr=fmean(map(max, floors)) if floors else None,
        seeds=tuple(dict.fromkeys(trial.seed for trial in trials)),
        trials=tuple(trials),
        at_chance=tuple(trial.seed for trial in trials if trial.at_chance),
        floor_at_chance=tuple(trial.seed for trial in covering if trial.at_chance),
    )


def _one_a_seed(trials: Iterable[SeedResult]) -> list[SeedResult]:
    # two clean fine-tunings that differ in the triggers tried afterwards are one training
    by_seed: dict[int, SeedResult] = {}
    for trial in trials:
        by_seed.setdefault(trial.seed, trial)
    return [by_seed[seed] for seed in sorted(by_seed)]


def _pooled(values: Iterable[float | None]) -> Estimate | None:
    present = [value for value in values if value is not None]
    return estimate(present) if present else None


def _order(summary: CellSummary) -> tuple[Any, ...]:
    named = (summary.attack, summary.defense)
    settings = (getattr(summary, setting) for setting in SETTINGS)
    return (
        summary.experiment,
        summary.model,
        # "none" first: what comes below is compared with it
        *((name != CLEAN, name) for name in named),
        *((value is not None, value if value is not None else 0) for value in settings),
        summary.task,
    )


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
        pc.is_in(results["kind"], pa.array(list(shown_as("neurons")), pa.string())),
        pc.is_in(results["metric"], pa.array([OVERLAP, POISONED_ONLY])),
    )
    # by stage: cells that share one repeat its rows
    groups: dict[ProbeName, dict[str, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for row in results.filter(wanted).to_pylist():
        name = ProbeName(*(row[field] for field in ProbeName._fields))
        groups[name][row["stage"]][row["metric"]] = row
    found = [_probe_summary(name, stages) for name, stages in groups.items()]
    return sorted(found, key=_probe_order)


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


def _probe_summary(name: ProbeName, stages: dict[str, dict[str, Any]]) -> ProbeSummary:
    ordered = sorted(stages.items())
    overlaps = [rows[OVERLAP] for _, rows in ordered if OVERLAP in rows]
    counts = [rows[POISONED_ONLY] for _, rows in ordered if POISONED_ONLY in rows]
    shares = [row["value"] / row["denominator"] for row in counts if row["denominator"]]
    return ProbeSummary(
        **name._asdict(),
        overlap=_pooled_probes(row["value"] for row in overlaps),
        poisoned_only=_pooled_probes(row["value"] for row in counts),
        share=_pooled_probes(shares),
        seeds=tuple(sorted({row["seed"] for row in (*overlaps, *counts)})),
        stages=tuple(stage for stage, _ in ordered),
    )


def _pooled_probes(values: Iterable[float]) -> Estimate | None:
    present = list(values)
    return estimate(present) if present else None


def _probe_order(probe: ProbeSummary) -> tuple[Any, ...]:
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
