"""Tables drawn for a terminal and as Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from recipe_ray.report.tables import MORE, Table

_PADDING = 3  # characters that rich draws around a field
_STACKED_PADDING = 2  # the same, without lines between columns


@dataclass(frozen=True)
class Terminal:
    """The tables as a rich renderable; tasks that do not fit the width follow below."""

    tables: Sequence[Table]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.tables:
            yield Text("no results yet")
            return
        for table in self.tables:
            for part in _fitted(table, options.max_width):
                yield _drawn(part)
            yield from (Text(note) for note in table.notes)
            if table.stacked:
                yield Text("")
        yield from (Text(line, style="dim") for line in _explanations(self.tables))


def markdown(tables: Sequence[Table]) -> str:
    """Return the tables as Markdown."""
    if not tables:
        return "no results yet\n"
    parts = [part for table in tables for part in (_marked(table), *table.notes)]
    return "\n\n".join([*parts, *_explanations(tables)]) + "\n"


def _explanations(tables: Iterable[Table]) -> list[str]:
    return list(dict.fromkeys(table.explanation for table in tables))


def _fitted(table: Table, width: int) -> list[Table]:
    padding = _STACKED_PADDING if table.stacked else _PADDING
    used = [
        max(len(column.group), len(column.name), *(len(row[i]) for row in table.rows)) + padding
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
    return replace(
        table,
        columns=tuple(table.columns[i] for i in chosen),
        rows=tuple(tuple(row[i] for i in chosen) for row in table.rows),
    )


def _drawn(table: Table) -> RichTable:
    groups = list(dict.fromkeys(column.group for column in table.columns if column.group))
    # one task is named once, above, which leaves room for the names of the rows
    alone = groups[0] if len(groups) == 1 else None
    title = table.title if alone is None else f"{table.title}: {alone}"
    drawn = RichTable(
        title=Text(title),
        title_justify="left",
        header_style="bold",
        box=box.SIMPLE_HEAD if table.stacked else box.HEAVY_HEAD,
        padding=(0, 1, 0, 0) if table.stacked else (0, 1),
        show_edge=not table.stacked,
        pad_edge=not table.stacked,
    )
    for column in table.columns:
        # Text, because a name from an experiment may look like markup; names fold, numbers never
        above = "" if alone is not None else f"{column.group}\n"
        header = Text(above + column.name)
        if column.numeric:
            drawn.add_column(header, justify="right", no_wrap=True)
        else:
            drawn.add_column(header, overflow="fold")
    was_more = False
    for row in table.rows:
        more = row[0].startswith(MORE)
        if was_more and not more:
            drawn.add_section()
        was_more = more
        drawn.add_row(*(Text(field) for field in row), style="dim" if more else "")
    return drawn


def _marked(table: Table) -> str:
    headers = [f"{column.group} {column.name}".strip() for column in table.columns]
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    lines = [headers, rule, *table.rows]
    drawn = ["| " + " | ".join(_escaped(field) for field in line) + " |" for line in lines]
    return "\n".join([f"### {table.title}", "", *drawn])


def _escaped(field: str) -> str:
    return field.replace("|", "\\|")
