"""The layout of a report: which rows and columns a table has, and the text of each field.

Rows are PTMs (model, attack, defense and whatever else varies), column groups are tasks. How a
table is drawn is for `terminal.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from recipe_ray.report.estimate import Estimate
from recipe_ray.report.results import SETTINGS, CellSummary

MEASURED = ("ACC", "AASR", "floor", "MASR", "floor")
EXPLANATION = (
    "Percent. AASR and MASR: mean and maximum over triggers of the attack success rate; floor: the "
    "clean, undefended PTM's on the same triggers. ± is half of the 95 % t interval over seeds."
)
ABSENT = "-"


@dataclass(frozen=True)
class Column:
    """One column; `group` is the task it belongs to, "" for those that name the row."""

    group: str
    name: str

    @property
    def numeric(self) -> bool:
        """Tell whether its fields align right."""
        return bool(self.group)


@dataclass(frozen=True)
class Table:
    """One experiment's table, every field as text."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(summaries: Iterable[CellSummary]) -> list[Table]:
    """Return one table an experiment, rows in the order of the summaries."""
    by_experiment: dict[str, list[CellSummary]] = {}
    for summary in summaries:
        by_experiment.setdefault(summary.experiment, []).append(summary)
    return [_table(name, cells) for name, cells in by_experiment.items()]


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage with one decimal, without the sign."""
    return ABSENT if fraction is None else f"{100 * fraction:.1f}"


def _table(title: str, cells: Sequence[CellSummary]) -> Table:
    tasks = sorted({cell.task for cell in cells})
    settings = [setting for setting in SETTINGS if _varies(setting, cells)]
    rows: dict[tuple[Any, ...], dict[str, CellSummary]] = {}
    for cell in cells:
        rows.setdefault(_row_name(cell), {})[cell.task] = cell
    names = [Column("", name) for name in ("model", "attack", "defense", *settings, "seeds")]
    measured = [Column(task, name) for task in tasks for name in MEASURED]
    return Table(
        title,
        (*names, *measured),
        tuple(_row(by_task, settings, tasks) for by_task in rows.values()),
    )


def _row_name(cell: CellSummary) -> tuple[Any, ...]:
    return (cell.model, cell.attack, cell.defense, *(getattr(cell, name) for name in SETTINGS))


def _varies(setting: str, cells: Sequence[CellSummary]) -> bool:
    if len({getattr(cell, setting) for cell in cells} - {None}) > 1:
        return True
    # None and one value differ only in kind (no defense has no auxiliary data), unless they are
    # all that tells two rows apart
    found: dict[tuple[str, str, str], set[Any]] = {}
    for cell in cells:
        key = (cell.model, cell.attack, cell.defense)
        found.setdefault(key, set()).add(getattr(cell, setting))
    return any(len(values) > 1 for values in found.values())


def _row(
    by_task: dict[str, CellSummary], settings: Sequence[str], tasks: Sequence[str]
) -> tuple[str, ...]:
    first, *_ = by_task.values()
    names = [first.model, first.attack, first.defense]
    names += [_setting(getattr(first, setting)) for setting in settings]
    names.append(_range(sorted({len(cell.trials) for cell in by_task.values()})))
    return (*names, *(field for task in tasks for field in _measured(by_task.get(task))))


def _measured(cell: CellSummary | None) -> tuple[str, ...]:
    if cell is None:
        return (ABSENT,) * len(MEASURED)
    return (
        _estimate(cell.acc),
        _estimate(cell.aasr),
        percent(cell.floor_aasr),
        _estimate(cell.masr),
        percent(cell.floor_masr),
    )


def _estimate(value: Estimate | None) -> str:
    if value is None or value.margin is None:
        return percent(value.mean if value else None)
    return f"{percent(value.mean)} ±{percent(value.margin)}"


def _setting(value: Any) -> str:
    if value is None:
        return ABSENT
    return f"{value:g}" if isinstance(value, float) else str(value)


def _range(counts: Sequence[int]) -> str:
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
