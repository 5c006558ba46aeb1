"""Result rows summarised by cell, seeds pooled, the clean PTM's ASR as the floor; probes likewise.

All values are fractions; percentages are made when rendering. A probe takes a task's texts with and
without one trigger (paper, Figure 2 and Table 10). `overlap` is A / B: A are the neurons active on
clean and on poisoned texts, B those active on poisoned texts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa

from recipe_ray.base.errors import UserError
from recipe_ray.learn.metrics import MAJORITY, learned
from recipe_ray.report.stats import Estimate, Row, grouped, pooled
from recipe_ray.stages.stage import shown_as

CLEAN = "none"
METRICS = ("acc", MAJORITY, "asr", "aasr", "masr")
SETTINGS = ("aux", "aux_size", "weight_factor", "epoch")


@dataclass(frozen=True)
class CellName:
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
    """A measured fraction and its counts, None if the rows have none."""

    value: float
    numerator: float | None = None
    denominator: float | None = None


@dataclass(frozen=True)
class SeedResult:
    """One fine-tuning: a cell at one seed; `asr` is by (trigger, label).

    Trials of the same `comparison` differ only in what was done to the PTM, in triggers and seed.
    `majority` is the largest class's share of the test set, None if the rows do not say it;
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
class CellSummary(CellName):
    """One row of a report: only the seeds differ; None if it was not measured.

    The floors are the clean, undefended PTM's ASR on the same triggers, `clean_acc` its ACC, both
    averaged over seeds, from all equal fine-tunings in the store. `at_chance` are the seeds
    of trials that are at chance, `floor_at_chance` those of the clean PTM's, which the floors
    leave out.
    """

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
    """Return one summary per cell and task, seeds pooled, sorted by name with "none" first.

    Give the rows of all experiments: a cell's floor is looked for in every one of them.
    Raises UserError if two stages claim the same cell and seed.
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
    found = grouped(results, dict.fromkeys(shown_as("attack success"), METRICS), CellName)
    return {
        cell: sorted((_trial(stage, rows) for stage, rows in stages.items()), key=_replicate)
        for cell, stages in found.items()
    }


def _trial(stage: str, rows: Sequence[Row]) -> SeedResult:
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


def _share(row: Row) -> Share:
    return Share(row["value"], row["numerator"], row["denominator"])


def _replicate(trial: SeedResult) -> tuple[int, int]:
    return trial.seed, -1 if trial.sample_seed is None else trial.sample_seed


def _refuse_twins(cell: CellName, trials: Sequence[SeedResult]) -> None:
    (seeds, count), *_ = Counter(map(_replicate, trials)).most_common(1)
    if count > 1:
        stages = ", ".join(trial.stage for trial in trials if _replicate(trial) == seeds)
        name = "/".join(map(str, astuple(cell)))
        raise UserError(
            f"{cell.experiment}: stages {stages} all claim {name} at seed {seeds[0]}. They "
            "differ in something that has no column in the results, perhaps "
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
        **vars(cell),
        acc=pooled(trial.acc.value if trial.acc else None for trial in trials),
        aasr=pooled(trial.aasr for trial in trials),
        masr=pooled(trial.masr for trial in trials),
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


def _order(summary: CellSummary) -> tuple[Any, ...]:
    named = (summary.attack, summary.defense)
    settings = (getattr(summary, setting) for setting in SETTINGS)
    return (
        summary.experiment,
        summary.model,
        # "none" first: the rows below are compared with it
        *((name != CLEAN, name) for name in named),
        *((value is not None, value if value is not None else 0) for value in settings),
        summary.task,
    )


OVERLAP, POISONED_ONLY = "overlap", "poisoned_only_neurons"


@dataclass(frozen=True)
class ProbeName:
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
class ProbeSummary(ProbeName):
    """One PTM, task and trigger, seeds pooled; None if it was not measured.

    `poisoned_only` counts neurons active on poisoned texts only; `share` is of all neurons.
    """

    overlap: Estimate | None
    poisoned_only: Estimate | None
    share: Estimate | None
    seeds: tuple[int, ...]
    stages: tuple[str, ...]


def summarise_probes(results: pa.Table) -> list[ProbeSummary]:
    """Return one summary per PTM, task and trigger, sorted by name."""
    metrics = dict.fromkeys(shown_as("neurons"), (OVERLAP, POISONED_ONLY))
    found = grouped(results, metrics, ProbeName).items()
    return sorted((_probe_summary(name, stages) for name, stages in found), key=_probe_order)


def by_attack(probes: Iterable[ProbeSummary]) -> list[tuple[str, str, ProbeSummary]]:
    """Return (attack, state of the PTM, probe), clean PTMs next to each attack with its trigger.

    The state is "backdoored", "purified", "clean" or "clean, purified". A clean PTM with whose
    texts and trigger no attack was probed is listed under its own attack, "none".
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


def _probe_summary(name: ProbeName, stages: Mapping[str, Sequence[Row]]) -> ProbeSummary:
    by_metric = [{row["metric"]: row for row in rows} for _, rows in sorted(stages.items())]
    overlaps = [rows[OVERLAP] for rows in by_metric if OVERLAP in rows]
    counts = [rows[POISONED_ONLY] for rows in by_metric if POISONED_ONLY in rows]
    shares = [row["value"] / row["denominator"] for row in counts if row["denominator"]]
    return ProbeSummary(
        **vars(name),
        overlap=pooled(row["value"] for row in overlaps),
        poisoned_only=pooled(row["value"] for row in counts),
        share=pooled(shares),
        seeds=tuple(sorted({row["seed"] for row in (*overlaps, *counts)})),
        stages=tuple(sorted(stages)),
    )


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
