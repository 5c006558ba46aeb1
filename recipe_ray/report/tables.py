"""What a table of a report is made of, how numbers are put into its fields, and marks of chance.

Rows are PTMs (model, attack, defense and all else that varies), column groups are tasks. A
fine-tuning is at chance if its ACC is not above the largest class's share of its test set
(`learn/metrics.py`). Its AASR and MASR say nothing, and no floor is drawn from it. `render.py`
draws tables.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe_ray.report.stats import Estimate
from recipe_ray.report.summary import SETTINGS, CellSummary

ABSENT = "-"
# before the first field of a row that says more of the row above: paper, difference ...
MORE = "· "


@dataclass(frozen=True)
class Column:
    """One column; `group` is the task it belongs to, "" for those that name the row."""

    group: str
    name: str
    number: bool = False  # of a column without a group

    @property
    def numeric(self) -> bool:
        """Tell whether its fields align right."""
        return bool(self.group) or self.number


@dataclass(frozen=True)
class Table:
    """One table, every field as text; `notes` are its own, `explanation` that of its kind.

    `blocks` are the rows for who sorts them, of a stacked table only: each block has a row and all
    that is said of it, also what `rows` shows once for several.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    explanation: str
    notes: tuple[str, ...] = ()
    blocks: tuple[tuple[tuple[str, ...], ...], ...] = ()

    @property
    def stacked(self) -> bool:
        """Tell whether rows say more of the row above."""
        return any(row[0].startswith(MORE) for row in self.rows)


@dataclass(frozen=True)
class Entry:
    """What a stacked table says of one PTM on one task.

    `lines` holds the task's fields by what they are: measured first, then paper, difference ...;
    `shared` likewise, but shown once below consecutive rows that have the same.
    """

    name: tuple[str, ...]
    task: str
    num_trials: int
    lines: Mapping[str, Sequence[str]]
    shared: Mapping[str, Sequence[str]]


def stacked_rows(entries: Iterable[Entry], tasks: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the rows: for each name its first line with the number of seeds, then the others."""
    blocks = _blocks(entries, tasks)
    rows: list[tuple[str, ...]] = []
    for (own, shared), following in zip(blocks, [*blocks[1:], None], strict=True):
        rows += own
        if following is None or following[1] != shared:
            rows += shared
    return tuple(rows)


def stacked_blocks(
    entries: Iterable[Entry], tasks: Sequence[str]
) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Return the rows of each name, with all that is said of it."""
    return tuple((*own, *shared) for own, shared in _blocks(entries, tasks))


_Block = tuple[list[tuple[str, ...]], list[tuple[str, ...]]]


def _blocks(entries: Iterable[Entry], tasks: Sequence[str]) -> list[_Block]:
    by_name: dict[tuple[str, ...], dict[str, Entry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name, {})[entry.task] = entry
    return [_block(name, by_task, tasks) for name, by_task in by_name.items()]


def _block(name: tuple[str, ...], by_task: Mapping[str, Entry], tasks: Sequence[str]) -> _Block:
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
    # None and one value differ only in kind: without a defense there are no auxiliary data
    several = len({getattr(cell, setting) for cell in cells} - {None}) > 1
    return several or tells_apart(setting, cells)


def tells_apart(setting: str, cells: Sequence[CellSummary]) -> bool:
    """Tell whether some model, attack and defense has several values of a setting."""
    found: dict[tuple[str, str, str], set[Any]] = {}
    for cell in cells:
        key = (cell.model, cell.attack, cell.defense)
        found.setdefault(key, set()).add(getattr(cell, setting))
    return any(len(values) > 1 for values in found.values())


MARK = "!"  # after the numbers of a cell if one of its seeds is at chance
RULE = (
    "at chance: the classifier's ACC is not above the share of the largest class of the test set "
    "(the lower end of its exact 95 % interval is not)"
)


def marked(text: str, at_chance: bool) -> str:
    """Return a field, with the mark if its classifier is at chance."""
    return f"{text}{MARK}" if at_chance and text != ABSENT else text


def chance_notes(cells: Sequence[CellSummary]) -> tuple[str, ...]:
    """Return the text below a table of these cells: what is marked, and why floors lack."""
    found = [cell for cell in cells if cell.at_chance]
    told = []
    if found or any(cell.floor_at_chance for cell in cells):
        shares = dict.fromkeys(_largest(cells))
        told.append(
            f"{MARK} {RULE}, so its AASR and MASR say nothing. Largest class: {', '.join(shares)}."
        )
    partly = [cell for cell in found if len(cell.at_chance) < len(cell.trials)]
    if partly:
        told.append(f"Of these only some seeds are at chance: {_listed(map(_seeds, partly))}.")
    lacking = [cell for cell in cells if cell.floor_at_chance]
    none = dict.fromkeys(_clean(cell) for cell in lacking if cell.floor_masr is None)
    if none:
        told.append(
            f"No floor for {_listed(none)}: the clean PTM's own fine-tuning is at chance there; "
            "fine-tune longer, or on more data."
        )
    fewer = dict.fromkeys(_clean(cell) for cell in lacking if cell.floor_masr is not None)
    if fewer:
        told.append(f"Floors leave out seeds of the clean PTM at chance: {_listed(fewer)}.")
    return tuple(told)


def _largest(cells: Iterable[CellSummary]) -> Iterable[str]:
    for cell in cells:
        for trial in cell.trials:
            if trial.majority is not None and (trial.at_chance or cell.floor_at_chance):
                count = f" of {trial.majority.denominator:,.0f}"
                yield f"{cell.task} {percent(trial.majority.value)} %{count}"


def _seeds(cell: CellSummary) -> str:
    seeds = ", ".join(map(str, cell.at_chance))
    return f"{cell.model}, {cell.attack}, {cell.defense} on {cell.task} (seed {seeds})"


def _clean(cell: CellSummary) -> str:
    return f"{cell.model} on {cell.task} (seed {', '.join(map(str, cell.floor_at_chance))})"


def _listed(names: Iterable[str]) -> str:
    return "; ".join(names)


MEASURED = ("ACC", "AASR", "floor", "MASR", "floor")
EXPLANATION = (
    "Percent. AASR and MASR: mean and maximum over triggers of the attack success rate; floor: the "
    "clean, undefended PTM's on the same triggers. ± is half of the 95 % t interval over seeds."
)


def tables(summaries: Iterable[CellSummary]) -> list[Table]:
    """Return one table per experiment, rows in the order of the summaries."""
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
