"""The report as one HTML file that needs no network: what ran, every table, every figure.

Names in rows may come from anybody. All text is escaped, control signs are replaced, and what is
longer than `LONGEST` characters is cut. Charts are SVG made beforehand, so the page runs no library
and holds no data for scripts. Its own script only sorts, filters and shows what a mark says; a
Content-Security-Policy in the page lets nothing else run or be fetched.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files

from recipe_ray.base.errors import UserError
from recipe_ray.report.charts import Figure, Panel, renamed, short, svg
from recipe_ray.report.figures import figures
from recipe_ray.report.overview import Overview, core_hours, made_with, worker_hours
from recipe_ray.report.sections import Section
from recipe_ray.report.tables import ABSENT, MORE, Column, Table

LARGEST = 32 * 2**20  # bytes of the file: browsers take longer than a person waits beyond it
LONGEST = 300  # characters of one field or message
_FIRST = 6  # panels of a figure that are shown at once
_WIDE = 40  # a field longer than this is folded


def page(
    sections: Sequence[Section],
    overviews: Mapping[str, Overview],
    others: Sequence[Figure] = (),
    refresh_s: int | None = None,
) -> str:
    """Return the page; `others` are figures of no experiment; it loads again after `refresh_s`.

    Raises UserError if the library that draws is missing or the page would be too large.
    """
    parts = [_head(refresh_s), _contents(sections), _overview(sections, overviews, others)]
    size = sum(map(len, parts))
    for number, section in enumerate(sections):
        parts.append(_section(section, number, overviews.get(section.experiment)))
        size += len(parts[-1].encode())
        if size > LARGEST:
            raise UserError(
                f"--html: the page would have more than {LARGEST // 2**20} MiB (reached at "
                f"experiment {short(section.experiment)!r}, {number + 1} of {len(sections)}); "
                "choose one with --experiment"
            )
    return "\n".join([*parts, f"</main>\n<script>{_asset('page.js')}</script>\n</body>\n</html>\n"])


def _asset(name: str) -> str:
    return (files("recipe_ray.report") / name).read_text(encoding="utf-8")


def _head(refresh_s: int | None) -> str:
    style, script = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    again = "" if refresh_s is None else f'<meta http-equiv="refresh" content="{refresh_s}">\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n{again}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>recipe-ray report</title>\n<style>{style}</style>\n</head>\n<body>\n<main>\n"
        "<h1>recipe-ray report</h1>"
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _contents(sections: Sequence[Section]) -> str:
    if not sections:
        return "<p>No results yet.</p>"
    listed = "".join(
        f'<li><a href="#e{number}">{_text(one.experiment)}</a>{_of_paper(one)}</li>'
        for number, one in enumerate(sections)
    )
    return f'<nav aria-label="Experiments"><ul>{listed}</ul></nav>'


def _of_paper(section: Section) -> str:
    return f" ({_text(section.paper.title)})" if section.paper is not None else ""


# --- what ran


def _overview(
    sections: Sequence[Section], overviews: Mapping[str, Overview], others: Sequence[Figure]
) -> str:
    shown = [overviews[one.experiment] for one in sections if one.experiment in overviews]
    runs = [run for one in shown for run in one.runs]
    if not runs:
        return ""
    first, last = min(run.began for run in runs), max(run.ended for run in runs)
    distinct = len({run.key for run in runs})
    cores = core_hours(runs)
    cost = f"{worker_hours(runs):,.1f} worker-hours"
    cost += (
        " (cores per worker are known to a store, not to an export)"
        if cores is None
        else f", {cores:,.1f} core-hours"
    )
    devices = sorted({run.device for run in runs if run.device is not None})
    where = f" Devices: {', '.join(map(_text, devices))}." if devices else ""
    told = (
        f"<p>Experiments: {len(shown)}. Distinct finished stages: {distinct:,}, run from "
        f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC. Cost: {cost}; a stage that "
        f"experiments share counts once.{where}</p>"
    )
    made = "".join(f"<li>{_text(one)}</li>" for one in made_with(runs))
    commits = sorted({run.commit for run in runs if run.commit is not None})
    source = f"; {len(commits)} commits of the source" if len(commits) > 1 else ""
    return (
        f'<section aria-labelledby="ran"><h2 id="ran">What ran</h2>{told}{_table(_costs(shown))}'
        f"{_failures(shown)}<details><summary>Made with{source}</summary><ul>{made}</ul></details>"
        f"{''.join(_figure(figure, f't{n}') for n, figure in enumerate(others))}</section>"
    )


def _costs(shown: Iterable[Overview]) -> Table:
    names = ("stages done", "planned", "failed", "cells", "worker-hours", "core-hours")
    rows = []
    for one in shown:
        cores = core_hours(one.runs)
        counts = (one.planned, None if one.failures is None else len(one.failures), one.cells)
        rows.append(
            (
                one.experiment,
                f"{min(run.began for run in one.runs):%Y-%m-%d %H:%M}" if one.runs else ABSENT,
                str(one.done),
                *(ABSENT if count is None else str(count) for count in counts),
                f"{worker_hours(one.runs):.2f}",
                ABSENT if cores is None else f"{cores:.2f}",
            )
        )
    columns = (
        *(Column("", n) for n in ("experiment", "began (UTC)")),
        *(Column("", n, number=True) for n in names),
    )
    told = "A worker-hour is an hour of one worker of a stage. - means that it is not known here."
    return Table("Experiments", columns, tuple(rows), told)


def _failures(shown: Sequence[Overview]) -> str:
    if all(one.failures is None for one in shown):
        return '<p class="note">Failures are kept in a store, not in an export: not known here.</p>'
    failed = [(one.experiment, failure) for one in shown for failure in one.failures or ()]
    if not failed:
        return "<p>No stage is failed.</p>"
    columns = [Column("", n) for n in ("experiment", "stage", "time", "error", "message")]
    rows = [
        (name, f"{one.kind} {one.label}", one.time[:19], one.error, one.message)
        for name, one in failed
    ]
    table = Table("Failed stages", tuple(columns), tuple(rows), "The last failure of each stage.")
    return f'<div class="bad">{_table(table)}</div>'


# --- experiments


def _section(section: Section, number: int, overview: Overview | None) -> str:
    tables = "".join(map(_table, section.tables()))
    drawn = figures(section, overview)
    shown = "".join(_figure(figure, f"e{number}f{n}") for n, figure in enumerate(drawn))
    name = f"{_text(section.experiment)}{_of_paper(section)}"
    nothing = "" if tables or shown else "<p>Nothing is measured yet.</p>"
    return (
        f'<section aria-labelledby="e{number}"><h2 id="e{number}">{name}</h2>'
        f"{tables}{shown}{nothing}</section>"
    )


def _table(table: Table) -> str:
    blocks = table.blocks or tuple((row,) for row in table.rows)
    wide = {n for n in range(len(table.columns)) for row in table.rows if len(row[n]) > _WIDE}
    body = "".join(f"<tbody>{''.join(_rows(block, table, wide))}</tbody>" for block in blocks)
    notes = "".join(f'<p class="note">{_text(note, 2000)}</p>' for note in table.notes)
    told = f'<p class="note">{_text(table.explanation, 2000)}</p>' if table.explanation else ""
    title = _text(table.title)
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{title}"><table>'
        f"<caption>{title}</caption><thead>{_groups(table.columns)}<tr>"
        + "".join(
            f'<th scope="col"{_class(column, n, wide)}>{_text(column.name)}</th>'
            for n, column in enumerate(table.columns)
        )
        + f"</tr></thead>{body}</table></div>{notes}{told}"
    )


def _groups(columns: Sequence[Column]) -> str:
    """Return the row of tasks above the names of columns, if there are tasks."""
    spans: list[tuple[str, int]] = []
    for column in columns:
        if spans and spans[-1][0] == column.group:
            spans[-1] = (column.group, spans[-1][1] + 1)
        else:
            spans.append((column.group, 1))
    if not any(name for name, _ in spans):
        return ""
    cells = (
        f'<th scope="colgroup" class="group" colspan="{width}">{_text(name)}</th>'
        if name
        else f'<td colspan="{width}"></td>'
        for name, width in spans
    )
    return f"<tr>{''.join(cells)}</tr>"


def _rows(block: Sequence[Sequence[str]], table: Table, wide: set[int]) -> Iterator[str]:
    for row in block:
        more = row[0].startswith(MORE)
        cells = []
        for n, (field, column) in enumerate(zip(row, table.columns, strict=True)):
            tag = 'th scope="row"' if n == 0 else "td"
            cells.append(f"<{tag}{_class(column, n, wide)}>{_text(field)}</{tag[:2]}>")
        start = '<tr class="more">' if more else "<tr>"
        yield f"{start}{''.join(cells)}</tr>"


def _class(column: Column, number: int, wide: set[int]) -> str:
    if number in wide:
        return ' class="wide"'
    return ' class="number"' if column.numeric else ""


def _figure(figure: Figure, name: str) -> str:
    caption = (
        f"<figcaption><strong>{_text(figure.title)}</strong>"
        f"<span>{_text(figure.note, 2000)}</span></figcaption>"
    )
    if figure.undrawable is not None:
        return f"<figure>{caption}<p>Not drawn: {_text(figure.undrawable)}.</p></figure>"
    drawn = [_panel(panel, f"{name}p{n}") for n, panel in enumerate(figure.panels)]
    first, more = "".join(drawn[:_FIRST]), drawn[_FIRST:]
    rest = (
        f"<details><summary>{len(more)} more panels</summary>"
        f'<div class="panels">{"".join(more)}</div></details>'
        if more
        else ""
    )
    return f'<figure>{caption}<div class="panels">{first}</div>{rest}</figure>'


def _panel(panel: Panel, name: str) -> str:
    """Return a panel with its text for those who cannot see it; its ids are its own on the page."""
    drawn = renamed(svg(panel), name)
    label = _text(f"{panel.title}. {panel.told}", 8000)
    start = f'<svg role="img" aria-label="{label}" '
    return f'<div class="panel" tabindex="0">{drawn.replace("<svg ", start, 1)}</div>'


def _text(value: str, longest: int = LONGEST) -> str:
    return escape(short(value, longest))
