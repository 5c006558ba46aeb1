"""The command that shows what came of experiments; it starts no Ray and loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recipe_ray.api.experiments import recorded_at
from recipe_ray.api.places import output_file, output_folder
from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.cli.options import DEFAULT_STORE, JsonOption

if TYPE_CHECKING:
    from recipe_ray.report.load import Recorded


def report_command(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A store, a folder that --export wrote, or a Parquet file of result rows.",
        ),
    ] = DEFAULT_STORE,
    experiment: Annotated[str | None, typer.Option(help="Only this experiment.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE,...",
            help="Only rows with these values, and the clean PTM's: --only defense=none,recipe.",
        ),
    ] = None,
    markdown_: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    json_: JsonOption = False,
    figures: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for every figure as SVG, PNG and PDF (extra `figures`).",
        ),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="One page with all tables and figures, without network (extra `figures`).",
        ),
    ] = None,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Show the page of --html while a sweep runs, until Ctrl-C."),
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of --serve on 127.0.0.1; 0: a free one.")
    ] = 0,
    export_: Annotated[
        str | None,
        typer.Option(
            "--export", metavar="FOLDER", help="Folder to keep each experiment's plan and rows in."
        ),
    ] = None,
) -> None:
    """Show ACC, AASR and MASR of every cell, next to the clean PTM's and the paper's."""
    from recipe_ray.report.json_report import as_json
    from recipe_ray.report.load import export, store_at
    from recipe_ray.report.render import Terminal, markdown
    from recipe_ray.report.sections import sections

    pictured = None if figures is None else output_folder(figures, "--figures")
    paged = None if html is None else output_file(html, "--html")
    kept_in = None if export_ is None else output_folder(export_, "--export")
    found = _recorded(place, only)
    names = [one.experiment for one in found]
    if experiment is not None and experiment not in names:
        raise SpecError(f"{place}: " + unknown("experiment", experiment, names))
    if serve:
        _serve(place, experiment, only, port)
        return
    shown = sections(found, experiment)
    if json_:
        typer.echo(as_json(shown))
    else:
        drawn = [table for section in shown for table in section.tables()]
        if markdown_:
            typer.echo(markdown(drawn), nl=False)
        else:
            from rich.console import Console

            Console().print(Terminal(drawn))
    kept = [one for one in found if experiment in (None, one.experiment)]
    written: list[Path] = []
    if pictured is not None:
        from recipe_ray.report.figures import draw
        from recipe_ray.report.overview import overviews
        from recipe_ray.report.run_figures import trigger_pictures

        store = store_at(place)
        about = {one.experiment: one for one in overviews(kept, store)}
        grids = trigger_pictures(kept, store) if store is not None else []
        written += draw(shown, pictured, about, grids)
    if paged is not None:
        text = _page(place, experiment, only)
        paged.parent.mkdir(parents=True, exist_ok=True)
        paged.write_text(text, encoding="utf-8")
        written.append(paged)
    if kept_in is not None:
        written += export(kept, kept_in)
    for file in written:
        typer.echo(f"wrote {file}", err=True)


def _page(
    place: str, experiment: str | None, only: list[str] | None, refresh_s: int | None = None
) -> str:
    """Return the page of what is at a place now."""
    from recipe_ray.report.html import page
    from recipe_ray.report.load import store_at
    from recipe_ray.report.overview import overviews
    from recipe_ray.report.run_figures import trigger_pictures
    from recipe_ray.report.sections import sections

    found, store = _recorded(place, only), store_at(place)
    kept = [one for one in found if experiment in (None, one.experiment)]
    about = {one.experiment: one for one in overviews(kept, store)}
    grids = trigger_pictures(kept, store) if store is not None else []
    return page(sections(found, experiment), about, grids, refresh_s)


def _serve(place: str, experiment: str | None, only: list[str] | None, port: int) -> None:
    from recipe_ray.report.charts import require_library
    from recipe_ray.report.serve import REFRESH_S, PageServer

    require_library()
    with PageServer(lambda: _page(place, experiment, only, REFRESH_S), port) as server:
        typer.echo(f"{server.url} shows {place}, on this machine only; Ctrl-C ends it", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("no longer shown; a sweep that runs is not affected", err=True)


def _recorded(place: str, only: list[str] | None) -> list[Recorded]:
    from recipe_ray.report.load import narrowed

    found = recorded_at(place)
    for one in only or ():
        column, sign, values = one.partition("=")
        if not sign or not values:
            raise SpecError(f"--only {one}: write COLUMN=VALUE,..., e.g. defense=none,recipe")
        found = narrowed(found, column, values.split(","))
    return found
