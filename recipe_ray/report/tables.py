"""The table of an experiment that stands beside none of the paper's.

Rows are PTMs (model, attack, defense and whatever else varies), column groups are tasks.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from recipe_ray.report.chance import chance_notes, marked
from recipe_ray.report.layout import (
    ABSENT,
    Column,
    Table,
    estimate_text,
    percent,
    range_text,
    setting_text,
    varies,
)
from recipe_ray.report.results import SETTINGS, CellSummary

MEASURED = ("ACC", "AASR", "floor", "MASR", "floor")
EXPLANATION = (
    "Percent. AASR and MASR: mean and maximum over triggers of the attack success rate; floor: the "
    "clean, undefended PTM's on the same triggers. ± is half of the 95 % t interval over seeds."
)


def tables(summaries: Iterable[CellSummary]) -> list[Table]:
    """Return one table an experiment, rows in the order of the summaries."""
    by_experiment: dict[str, list[CellSummary]] = {}
    for summary in summaries:
        by_experiment.setdefault(summary.experiment, []).append(summary)
    return [_table(name, cells) for name, cells in by_experiment.items()]


def _table(title: str, cells: Sequence[CellSummary]) -> Table:
    tasks = sorted({cell.task for cell in cells})
    settings = [setting for setting in SETTINGS if varies(setting, cells)]
    rows: dict[tuple[Any, ...], dict[str, CellSummary]] = {}
    for cell in cells:
        rows.setdefault(_row_name(cell), {})[cell.task] = cell
    names = [Column("", name) for name in ("model", "attack", "defense", *settings, "seeds")]
    measured = [Column(task, name) for task in tasks for name in MEASURED]
    return Table(
        title,
        (*names, *measured),
        tuple(_row(by_task, settings, tasks) for by_task in rows.values()),
        EXPLANATION,
        chance_notes(cells),
    )


def _row_name(cell: CellSummary) -> tuple[Any, ...]:
    return (cell.model, cell.attack, cell.defense, *(getattr(cell, name) for name in SETTINGS))


def _row(
    by_task: dict[str, CellSummary], settings: Sequence[str], tasks: Sequence[str]
) -> tuple[str, ...]:
    first, *_ = by_task.values()
    names = [first.model, first.attack, first.defense]
    names += [setting_text(getattr(first, setting)) for setting in settings]
    names.append(range_text(len(cell.trials) for cell in by_task.values()))
    return (*names, *(field for task in tasks for field in _measured(by_task.get(task))))


def _measured(cell: CellSummary | None) -> tuple[str, ...]:
    if cell is None:
        return (ABSENT,) * len(MEASURED)
    acc, aasr, masr = (
        marked(estimate_text(value), bool(cell.at_chance))
        for value in (cell.acc, cell.aasr, cell.masr)
    )
    return (acc, aasr, percent(cell.floor_aasr), masr, percent(cell.floor_masr))
