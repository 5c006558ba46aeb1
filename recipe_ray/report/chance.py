"""What a report says of classifiers that learned nothing: a mark, and its meaning below the table.

A fine-tuning is at chance if its ACC is not above the largest class's share of its test set
(`stages/chance.py`). Its AASR and MASR say nothing, and no floor is drawn from it.
"""

from collections.abc import Iterable, Sequence

from recipe_ray.report.layout import ABSENT, percent
from recipe_ray.report.results import CellSummary

MARK = "!"  # behind the numbers of a cell of which a seed is at chance
RULE = (
    "at chance: the classifier's ACC is not above the share of the largest class of the test set "
    "(the lower end of its exact 95 % interval is not)"
)


def marked(text: str, at_chance: bool) -> str:
    """Return a field, with the mark if what it says is of a classifier at chance."""
    return f"{text}{MARK}" if at_chance and text != ABSENT else text


def chance_notes(cells: Sequence[CellSummary]) -> tuple[str, ...]:
    """Return what stands below a table of these cells: what is marked, and why floors lack."""
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
