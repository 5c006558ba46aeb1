"""Probes laid out as a table: overlap ratios (Figure 2) and poisoned-only neurons (Table 10)."""

from collections.abc import Mapping, Sequence

from recipe_ray.report.beside import difference, notes
from recipe_ray.report.layout import (
    Column,
    Entry,
    Table,
    count_text,
    estimate_text,
    percent,
    setting_text,
    stacked_rows,
)
from recipe_ray.report.probes import POISONED_ONLY, ProbeSummary, by_attack
from recipe_ray.report.published import NUM_NEURONS, Published, PublishedTable
from recipe_ray.report.results import CLEAN

COLUMNS = ("overlap", "only poisoned", "share")
SETTINGS = ("aux", "aux_size", "weight_factor")
STATES = ("backdoored", "purified", "clean", "clean, purified")
EXPLANATION = (
    "overlap: neurons active on clean and on poisoned texts, of those active on poisoned ones, in "
    "percent; only poisoned: how many are active on poisoned texts only; share: the same, of all "
    "neurons of the PTM, in percent. ± is half of the 95 % t interval over seeds."
)


def probes_table(title: str, paper: PublishedTable | None, probes: Sequence[ProbeSummary]) -> Table:
    """Return one experiment's table of probes; the paper has counts in Table 10 only."""
    settings = [name for name in SETTINGS if _varies(name, probes)]
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
            _lines(probe, _found(paper, probe)),
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
        EXPLANATION,
        (_triggers(placed), *(notes(paper, probes) if paper else ())),
    )


def _found(paper: PublishedTable | None, probe: ProbeSummary) -> Published | None:
    return paper.find(probe).get(POISONED_ONLY) if paper is not None else None


def _lines(probe: ProbeSummary, found: Published | None) -> Mapping[str, Sequence[str]]:
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
    # undefended PTMs have no auxiliary data: None tells nothing apart
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
