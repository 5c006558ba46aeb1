"""Tables drawn for a terminal and as Markdown.

A terminal, a pipe and a CI log have a width. A name that is broken into pieces cannot be read or
searched for. So a table that is too wide loses its lines, then the columns that are the same in
all rows (they are said above it), and then each row becomes a block of lines.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from recipe_ray.base.printable import in_a_row, in_markdown, printable
from recipe_ray.report.tables import MORE, Table

_PADDING = 3  # characters that rich draws around a field
_STACKED_PADDING = 2  # the same, without lines between columns


@dataclass(frozen=True)
class Terminal:
    """The tables as a rich renderable, as wide as it may be; further tasks follow below."""

    tables: Sequence[Table]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not self.tables:
            yield Text("no results yet")
            return
        for table in self.tables:
            yield from _laid_out(_shown(table), options.max_width)
            yield from (Text(printable(note)) for note in table.notes)
            if table.stacked:
                yield Text("")
        yield from (Text(line, style="dim") for line in _explanations(self.tables))


def markdown(tables: Sequence[Table]) -> str:
    """Return the tables as Markdown."""
    if not tables:
        return "no results yet\n"
    parts = [part for table in tables for part in (_marked(table), *map(in_markdown, table.notes))]
    return "\n\n".join([*parts, *_explanations(tables)]) + "\n"


def _shown(table: Table) -> Table:
    """Return a table as a terminal may show it: its names are from result rows of anybody."""
    return replace(
        table,
        title=in_a_row(table.title),
        columns=tuple(
            replace(column, group=in_a_row(column.group), name=in_a_row(column.name))
            for column in table.columns
        ),
        rows=tuple(tuple(map(in_a_row, row)) for row in table.rows),
    )


def _explanations(tables: Iterable[Table]) -> list[str]:
    return list(dict.fromkeys(table.explanation for table in tables))


def _laid_out(table: Table, width: int) -> Iterator[RichTable | Text]:
    """Yield a table in parts that break no name, or else each of its rows as lines."""
    tries = [(table, not table.stacked), (table, False), (_without_constants(table), False)]
    for one, lines in tries:
        parts = _fitted(one, width, lines=lines)
        if parts is not None:
            yield from (_drawn(part, lines=lines) for part in parts)
            return
    yield from _blocks(_without_constants(table), width)


def _fitted(table: Table, width: int, *, lines: bool) -> list[Table] | None:
    """Return the table in parts, each with all names and some tasks; None if one is too wide."""
    padding = _PADDING if lines else _STACKED_PADDING
    own = [
        max(map(cell_len, (c.name, *(row[i] for row in table.rows)))) + padding
        for i, c in enumerate(table.columns)
    ]
    used = [
        max(size, cell_len(c.group) + padding) for size, c in zip(own, table.columns, strict=True)
    ]
    names = [i for i, column in enumerate(table.columns) if not column.group]
    parts: list[list[int]] = []
    for group in dict.fromkeys(column.group for column in table.columns if column.group):
        members = [i for i, column in enumerate(table.columns) if column.group == group]
        if parts and sum(used[i] for i in (*names, *parts[-1], *members)) < width:
            parts[-1] += members
        # a task alone is named above
        elif sum(own[i] for i in (*names, *members)) < width:
            parts.append(members)
        else:
            return None
    return [_part(table, [*names, *part]) for part in parts]


def _without_constants(table: Table) -> Table:
    """Return the table without names that are the same in all rows; the title says them."""
    rows = [row for row in table.rows if not row[0].startswith(MORE)]
    # the first column also says what a further line is
    first = 1 if table.stacked else 0
    same = [
        i
        for i, column in enumerate(table.columns)
        if not column.group and i >= first and len({row[i] for row in rows}) == 1
    ]
    if len(rows) < 2 or not same:
        return table
    said = ", ".join(f"{table.columns[i].name} {rows[0][i]}" for i in same)
    kept = [i for i in range(len(table.columns)) if i not in same]
    return replace(_part(table, kept), title=f"{table.title} ({said})")


def _blocks(table: Table, width: int) -> Iterator[Text]:
    """Yield each row as lines: its names, then its numbers by task."""
    yield Text(table.title, style="bold")
    for row in table.rows:
        fields = [(c, text) for c, text in zip(table.columns, row, strict=True) if text]
        more = row[0].startswith(MORE)
        if not more:
            named = [f"{column.name} {text}" for column, text in fields if not column.group]
            yield from _lines(named, "", width)
        for group in dict.fromkeys(column.group for column, _ in fields if column.group):
            told = [f"{column.name} {text}" for column, text in fields if column.group == group]
            head = f"{row[0].removeprefix(MORE)}, {group}:" if more else f"{group}:"
            yield from _lines([head, *told], "  " if not more else "    ", width)


def _lines(pieces: Sequence[str], indent: str, width: int) -> Iterator[Text]:
    """Yield pieces in lines of at most `width`, none broken; further lines are indented more."""
    line = indent + pieces[0]
    for piece in pieces[1:]:
        if cell_len(line) + 2 + cell_len(piece) > width:
            yield Text(line, style="dim" if len(indent) > 2 else "")
            line = f"{indent}    {piece}"
        else:
            line += f"  {piece}"
    yield Text(line, style="dim" if len(indent) > 2 else "")


def _part(table: Table, chosen: Sequence[int]) -> Table:
    return replace(
        table,
        columns=tuple(table.columns[i] for i in chosen),
        rows=tuple(tuple(row[i] for i in chosen) for row in table.rows),
    )


def _drawn(table: Table, *, lines: bool) -> RichTable:
    groups = list(dict.fromkeys(column.group for column in table.columns if column.group))
    # one task is named once, above, which leaves room for the names of the rows
    alone = groups[0] if len(groups) == 1 else None
    title = table.title if alone is None else f"{table.title}: {alone}"
    drawn = RichTable(
        title=Text(title),
        title_justify="left",
        header_style="bold",
        box=box.HEAVY_HEAD if lines else box.SIMPLE_HEAD,
        padding=(0, 1) if lines else (0, 1, 0, 0),
        show_edge=lines,
        pad_edge=lines,
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
    drawn = ["| " + " | ".join(map(in_markdown, line)) + " |" for line in (headers, *table.rows)]
    drawn.insert(1, "| " + " | ".join(rule) + " |")
    return "\n".join([f"### {in_markdown(table.title)}", "", *drawn])
