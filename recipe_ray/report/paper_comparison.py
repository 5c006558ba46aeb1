"""Fine-tunings and probes laid out as the paper's tables are, the published values below ours.

A row of ours is followed by what the paper has there and by the difference. Rows on the same
triggers are followed by the clean, undefended PTM: its ACC, and its ASR on these triggers, which is
the floor of AASR and MASR. Probes give overlap ratios (Figure 2) and poisoned-only neurons (Table
10).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from recipe_ray.report.published import NUM_NEURONS, Named, Published, PublishedTable, canonical
from recipe_ray.report.stats import Estimate
from recipe_ray.report.summary import (
    CLEAN,
    POISONED_ONLY,
    SETTINGS,
    CellSummary,
    ProbeSummary,
    by_attack,
)
from recipe_ray.report.tables import (
    ABSENT,
    Column,
    Entry,
    Table,
    chance_notes,
    count_text,
    estimate_text,
    marked,
    percent,
    setting_text,
    stacked_blocks,
    stacked_rows,
    tells_apart,
)

METRICS = ("ACC", "AASR", "MASR")
EXPLANATION = (
    "Percent. paper: the published value; difference: measured minus published, in points; clean "
    "PTM, of the rows above it: without attack or defense, on the same triggers, the floor of AASR "
    "and MASR (mean and maximum over triggers of the attack success rate). ± is half of the 95 % t "
    "interval over seeds."
)


def cells_table(title: str, paper: PublishedTable, cells: Sequence[CellSummary]) -> Table:
    """Return the table of fine-tunings, in the columns that the paper's has."""
    metrics = [metric for metric in METRICS if metric in paper.metrics] or list(METRICS)
    ordered = sorted(cells, key=lambda cell: (*paper.row_rank(cell), cell.epoch or 0))
    tasks = sorted({cell.task for cell in cells}, key=paper.task_rank)
    settings = [name for name in SETTINGS if tells_apart(name, cells)]
    # a name that all rows have goes into the title: three tasks are wide enough
    alone = [name for name in ("model", "attack") if len({getattr(c, name) for c in cells}) == 1]
    names = [name for name in ("model", "attack", "defense", *settings) if name not in alone]
    entries = [
        Entry(
            tuple(setting_text(getattr(start, name)) for name in names),
            cell.task,
            len(cell.trials),
            _lines(cell, paper.find(cell), metrics),
            _clean(cell, metrics),
        )
        # an undefended PTM counts as purified for 0 epochs
        for cell, start in ((cell, replace(cell, epoch=cell.epoch or 0)) for cell in ordered)
    ]
    groups = [paper.dataset(task) for task in tasks]
    return Table(
        ", ".join([f"{title}: {paper.title}", *(getattr(cells[0], name) for name in alone)]),
        (
            *(Column("", name) for name in (*names, "seeds")),
            *(Column(group, metric) for group in groups for metric in metrics),
        ),
        stacked_rows(entries, tasks),
        EXPLANATION,
        (*notes(paper, cells), *chance_notes(cells)),
        stacked_blocks(entries, tasks),
    )


def difference(measured: Estimate | None, published: float | None) -> str:
    """Return measured minus published, in points, of two fractions."""
    if measured is None or published is None:
        return ABSENT
    return f"{100 * (measured.mean - published):+.1f}"


def notes(paper: PublishedTable, cells: Iterable[Named]) -> tuple[str, ...]:
    """Return what must be known before comparing: how much is covered, models, auxiliary data."""
    if not paper.values:
        return (f"The paper prints no values for its {paper.title}, so none are shown.",)
    listed = list(cells)
    found = [value for cell in listed for value in paper.find(cell).values()]
    covered = f"{len(set(found))} of the {len(paper.values)} values of the paper's {paper.title}"
    told = [f"{covered} are shown next to ours."]
    pairs = {cell.model: paper.models[cell.model] for cell in listed if cell.model in paper.models}
    told += [f"{ours} is compared with the paper's {theirs}." for ours, theirs in pairs.items()]
    here = {(cell.aux, cell.aux_size) for cell in listed if cell.aux and cell.aux_size}
    there = {(value.aux_data, value.aux_size) for value in found}
    if {(canonical(name), size) for name, size in here} - {(canonical(n), s) for n, s in there}:
        told.append(f"Auxiliary data here: {_sizes(here)}; in the paper: {_sizes(there)}.")
    return tuple(told)


def _sizes(corpora: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({size:,})" for name, size in sorted(corpora)) or "none"


def _lines(
    cell: CellSummary, found: dict[str, Published], metrics: Sequence[str]
) -> dict[str, list[str]]:
    measured = {"ACC": cell.acc, "AASR": cell.aasr, "MASR": cell.masr}
    at_chance = bool(cell.at_chance)
    fields = [marked(estimate_text(measured[metric]), at_chance) for metric in metrics]
    lines = {"measured": fields}
    if found:
        fractions = {metric: value.value / 100 for metric, value in found.items()}
        lines["paper"] = [_printed(found.get(metric)) for metric in metrics]
        lines["difference"] = [difference(measured[m], fractions.get(m)) for m in metrics]
    return lines


def _clean(cell: CellSummary, metrics: Sequence[str]) -> dict[str, list[str]]:
    clean = {"ACC": cell.clean_acc, "AASR": cell.floor_aasr, "MASR": cell.floor_masr}
    if all(clean[metric] is None for metric in metrics):
        return {}
    # no ASR is left out: floors have no seed at chance
    chance = {metric: metric == "ACC" and bool(cell.floor_at_chance) for metric in metrics}
    return {"clean PTM": [marked(percent(clean[metric]), chance[metric]) for metric in metrics]}


def _printed(value: Published | None) -> str:
    return ABSENT if value is None else f"{value.value:.2f}"


COLUMNS = ("overlap", "only poisoned", "share")
PROBE_SETTINGS = ("aux", "aux_size", "weight_factor")
STATES = ("backdoored", "purified", "clean", "clean, purified")
PROBE_EXPLANATION = (
    "overlap: neurons active on clean and on poisoned texts, of those active on poisoned ones, in "
    "percent; only poisoned: how many are active on poisoned texts only; share: the same, of all "
    "neurons of the PTM, in percent. ± is half of the 95 % t interval over seeds."
)


def probes_table(title: str, paper: PublishedTable | None, probes: Sequence[ProbeSummary]) -> Table:
    """Return one experiment's table of probes; the paper has counts in Table 10 only."""
    settings = [name for name in PROBE_SETTINGS if _varies(name, probes)]
    if _several_triggers(probes):
        settings.append("trigger")
    models = {probe.model for probe in probes}
    names = (*(("model",) if len(models) > 1 else ()), "attack", "PTM", "defense", *settings)
    placed = sorted(by_attack(probes), key=lambda row: (row[2].model, row[0], STATES.index(row[1])))
    if paper is not None:
        placed.sort(key=lambda row: paper.attack_rank(row[0]))
    entries = [
        Entry(
            (
                *((probe.model,) if len(models) > 1 else ()),
                *(attack, state, probe.defense),
                *(setting_text(getattr(probe, name)) for name in settings),
            ),
            probe.task,
            len(probe.stages),
            _lines_of_neurons(probe, _found(paper, probe)),
            {},
        )
        for attack, state, probe in placed
    ]
    tasks = sorted({probe.task for probe in probes}, key=paper.task_rank if paper else None)
    groups = [paper.dataset(task) if paper else task for task in tasks]
    return Table(
        ", ".join([f"{title}: {paper.title if paper else 'neurons'}", *sorted(models)]),
        (
            *(Column("", name) for name in (*names, "seeds")),
            *(Column(group, name) for group in groups for name in COLUMNS),
        ),
        stacked_rows(entries, tasks),
        PROBE_EXPLANATION,
        (_triggers(placed), *(notes(paper, probes) if paper else ())),
        stacked_blocks(entries, tasks),
    )


def _found(paper: PublishedTable | None, probe: ProbeSummary) -> Published | None:
    return paper.find(probe).get(POISONED_ONLY) if paper is not None else None


def _lines_of_neurons(probe: ProbeSummary, found: Published | None) -> Mapping[str, Sequence[str]]:
    overlap, share = estimate_text(probe.overlap), estimate_text(probe.share)
    lines = {"measured": (overlap, count_text(probe.poisoned_only), share)}
    if found is not None:
        total = NUM_NEURONS.get(found.model)
        printed = found.value / total if total is not None else None
        lines["paper"] = ("", f"{found.value:.0f}", percent(printed))
        # a smaller PTM has fewer neurons: only the shares compare
        lines["difference"] = ("", "", difference(probe.share, printed))
    return lines


def _varies(setting: str, probes: Sequence[ProbeSummary]) -> bool:
    # undefended PTMs have no auxiliary data: None distinguishes nothing
    return len({getattr(probe, setting) for probe in probes} - {None}) > 1


def _several_triggers(probes: Sequence[ProbeSummary]) -> bool:
    attacked = [(p.model, p.attack, p.task, p.trigger) for p in probes if p.attack != CLEAN]
    return len(set(attacked)) > len({names[:3] for names in attacked})


def _triggers(placed: Sequence[tuple[str, str, ProbeSummary]]) -> str:
    used: dict[str, dict[str, None]] = {}
    for attack, _, probe in placed:
        used.setdefault(attack, {})[f"{probe.trigger} on {probe.task}"] = None
    told = (f"{attack}: {', '.join(sorted(pairs))}" for attack, pairs in used.items())
    return f"Triggers: {'; '.join(told)}."
