"""Tables drawn for a terminal, as Markdown, and the summaries as JSON.

The JSON is one object, stable within a `schema_version`; values are fractions, null where absent:

    {"schema_version": 1,
     "cells": [{"experiment", "model", "attack", "defense", "aux", "aux_size", "weight_factor",
                "task", "epoch",
                "acc" | "aasr" | "masr": {"mean", "low", "high", "n"} or null,
                "floor_aasr", "floor_masr", "seeds": [0, ...],
                "trials": [{"stage", "seed", "sample_seed", "acc": share, "aasr", "masr",
                            "asr": [{"trigger", "label", ...share}]}]}]}

where a share is {"value", "numerator", "denominator"}. `stage` is the key of the artifact whose
manifest and rows say everything else.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from recipe_ray.report.results import CellSummary, Trial
from recipe_ray.report.tables import EXPLANATION, Table

JSON_SCHEMA_VERSION = 1
_PADDING = 3  # characters that rich draws around a field


@dataclass(frozen=True)
class Terminal:
    """The tables as a rich renderable; tasks that do not fit the width go below each other."""

    tables: Sequence[Table]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.tables:
            yield Text("no results yet")
            return
        for table in self.tables:
            for part in _fitted(table, options.max_width):
                yield _drawn(part)
        yield Text(EXPLANATION, style="dim")


def markdown(tables: Sequence[Table]) -> str:
    """Return the tables as Markdown."""
    if not tables:
        return "no results yet\n"
    return "\n\n".join([*(_marked(table) for table in tables), EXPLANATION]) + "\n"


def as_json(summaries: Iterable[CellSummary]) -> str:
    """Return the summaries as JSON (structure above)."""
    cells = [_cell(summary) for summary in summaries]
    return json.dumps({"schema_version": JSON_SCHEMA_VERSION, "cells": cells}, indent=1)


def _fitted(table: Table, width: int) -> list[Table]:
    used = [
        max(len(column.group), len(column.name), *(len(row[i]) for row in table.rows)) + _PADDING
        for i, column in enumerate(table.columns)
    ]
    names = [i for i, column in enumerate(table.columns) if not column.group]
    parts: list[list[int]] = []
    for group in dict.fromkeys(column.group for column in table.columns if column.group):
        own = [i for i, column in enumerate(table.columns) if column.group == group]
        if parts and sum(used[i] for i in (*names, *parts[-1], *own)) < width:
            parts[-1] += own
        else:
            parts.append(own)
    return [_part(table, [*names, *part]) for part in parts]


def _part(table: Table, chosen: Sequence[int]) -> Table:
    return Table(
        table.title,
        tuple(table.columns[i] for i in chosen),
        tuple(tuple(row[i] for i in chosen) for row in table.rows),
    )


def _drawn(table: Table) -> RichTable:
    groups = list(dict.fromkeys(column.group for column in table.columns if column.group))
    # one task is named once, above, which leaves room for the names of the rows
    alone = groups[0] if len(groups) == 1 else None
    title = table.title if alone is None else f"{table.title}: {alone}"
    drawn = RichTable(title=Text(title), title_justify="left", header_style="bold")
    for column in table.columns:
        # Text, because a name from an experiment may look like markup; names fold, numbers never
        above = "" if alone is not None else f"{column.group}\n"
        header = Text(above + column.name)
        if column.numeric:
            drawn.add_column(header, justify="right", no_wrap=True)
        else:
            drawn.add_column(header, overflow="fold")
    for row in table.rows:
        drawn.add_row(*(Text(field) for field in row))
    return drawn


def _marked(table: Table) -> str:
    headers = [f"{column.group} {column.name}".strip() for column in table.columns]
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    lines = [headers, rule, *table.rows]
    drawn = ["| " + " | ".join(_escaped(field) for field in line) + " |" for line in lines]
    return "\n".join([f"### {table.title}", "", *drawn])


def _escaped(field: str) -> str:
    return field.replace("|", "\\|")


def _cell(summary: CellSummary) -> dict[str, Any]:
    measured = ("acc", "aasr", "masr")
    plain = {
        name: value
        for name, value in vars(summary).items()
        if name not in (*measured, "seeds", "trials")
    }
    estimates = {name: getattr(summary, name) for name in measured}
    return {
        **plain,
        **{name: asdict(value) if value else None for name, value in estimates.items()},
        "seeds": list(summary.seeds),
        "trials": [_trial(trial) for trial in summary.trials],
    }


def _trial(trial: Trial) -> dict[str, Any]:
    return {
        "stage": trial.stage,
        "seed": trial.seed,
        "sample_seed": trial.sample_seed,
        "acc": asdict(trial.acc) if trial.acc else None,
        "aasr": trial.aasr,
        "masr": trial.masr,
        "asr": [
            {"trigger": trigger, "label": label, **asdict(share)}
            for (trigger, label), share in sorted(trial.asr.items())
        ],
    }
