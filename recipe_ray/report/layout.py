"""What a table of a report is made of, and how numbers are put into its fields.

How a table is drawn is for `terminal.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe_ray.report.estimate import Estimate
from recipe_ray.report.results import CellSummary

ABSENT = "-"
# before the first field of a row that says more of the row above: paper, difference ...
MORE = "· "


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
    """One table, every field as text; `notes` are its own, `explanation` that of its kind."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    explanation: str
    notes: tuple[str, ...] = ()

    @property
    def stacked(self) -> bool:
        """Tell whether rows say more of the row above."""
        return any(row[0].startswith(MORE) for row in self.rows)


@dataclass(frozen=True)
class Entry:
    """What a stacked table says of one PTM on one task.

    `lines` holds the task's fields by what they are: measured first, then paper, difference ...;
    `shared` likewise, but said once below rows that follow each other and have the same.
    """

    name: tuple[str, ...]
    task: str
    num_trials: int
    lines: Mapping[str, Sequence[str]]
    shared: Mapping[str, Sequence[str]]


def stacked_rows(entries: Iterable[Entry], tasks: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the rows: for each name its first line with the number of seeds, then the others."""
    by_name: dict[tuple[str, ...], dict[str, Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name, {})[entry.task] = entry
    blocks = [_block(name, by_task, tasks) for name, by_task in by_name.items()]
    rows: list[tuple[str, ...]] = []
    for (own, shared), following in zip(blocks, [*blocks[1:], None], strict=True):
        rows += own
        if following is None or following[1] != shared:
            rows += shared
    return tuple(rows)


def _block(
    name: tuple[str, ...], by_task: Mapping[str, Entry], tasks: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    width = max(len(fields) for entry in by_task.values() for fields in entry.lines.values())

    def fields(line: str, missing: str) -> list[str]:
        found = [{**e.lines, **e.shared} if (e := by_task.get(task)) else {} for task in tasks]
        return [field for lines in found for field in lines.get(line, (missing,) * width)]

    def more(line: str) -> tuple[str, ...]:
        return (MORE + line, *([""] * len(name)), *fields(line, ""))

    first, *others = dict.fromkeys(line for entry in by_task.values() for line in entry.lines)
    shared = dict.fromkeys(line for entry in by_task.values() for line in entry.shared)
    seeds = range_text(entry.num_trials for entry in by_task.values())
    own = [(*name, seeds, *fields(first, ABSENT)), *map(more, others)]
    return own, [more(line) for line in shared]


def percent(fraction: float | None) -> str:
    """Return a fraction as a percentage with one decimal, without the sign."""
    return ABSENT if fraction is None else f"{100 * fraction:.1f}"


def estimate_text(value: Estimate | None) -> str:
    """Return a mean fraction and half its interval, in percent."""
    if value is None or value.margin is None:
        return percent(value.mean if value else None)
    return f"{percent(value.mean)} ±{percent(value.margin)}"


def count_text(value: Estimate | None) -> str:
    """Return a mean count and half its interval."""
    if value is None:
        return ABSENT
    return f"{value.mean:.0f}" + ("" if value.margin is None else f" ±{value.margin:.0f}")


def setting_text(value: Any) -> str:
    """Return the value of a setting."""
    if value is None:
        return ABSENT
    return f"{value:g}" if isinstance(value, float) else str(value)


def range_text(values: Iterable[int]) -> str:
    """Return the one value, or the lowest and the highest of several."""
    counts = sorted(set(values))
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"


def varies(setting: str, cells: Sequence[CellSummary]) -> bool:
    """Tell whether a setting has several values, or tells two rows of a table apart."""
    # None and one value differ only in kind: no defense has no auxiliary data
    several = len({getattr(cell, setting) for cell in cells} - {None}) > 1
    return several or tells_apart(setting, cells)


def tells_apart(setting: str, cells: Sequence[CellSummary]) -> bool:
    """Tell whether some model, attack and defense has several values of a setting."""
    found: dict[tuple[str, str, str], set[Any]] = {}
    for cell in cells:
        key = (cell.model, cell.attack, cell.defense)
        found.setdefault(key, set()).add(getattr(cell, setting))
    return any(len(values) > 1 for values in found.values())
