"""The command that shows what came of experiments; it starts no Ray and loads no model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.paths import local_path, why_missing
from recipe_ray.cli.options import DEFAULT_STORE, JsonOption, output_file, output_folder

if TYPE_CHECKING:
    from recipe_ray.report.load import Recorded

_WANTED = (
    "the folder or URI that --store was given, a folder that report --export wrote, or a Parquet "
    "file of result rows"
)


def report_command(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A store, a folder that --export wrote, or a Parquet file of result rows.",
        ),
    ] = DEFAULT_STORE,
    experiment: Annotated[str | None, typer.Option(help="Only this experiment.")] = None,
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
    found = _recorded(place)
    names = [one.experiment for one in found]
    if experiment is not None and experiment not in names:
        raise SpecError(f"{place}: " + unknown("experiment", experiment, names))
    if serve:
        _serve(place, experiment, port)
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
        text = _page(place, experiment)
        paged.parent.mkdir(parents=True, exist_ok=True)
        paged.write_text(text, encoding="utf-8")
        written.append(paged)
    if kept_in is not None:
        written += export(kept, kept_in)
    for file in written:
        typer.echo(f"wrote {file}", err=True)


def _page(place: str, experiment: str | None, refresh_s: int | None = None) -> str:
    """Return the page of what is at a place now."""
    from recipe_ray.report.html import page
    from recipe_ray.report.load import store_at
    from recipe_ray.report.overview import overviews
    from recipe_ray.report.run_figures import trigger_pictures
    from recipe_ray.report.sections import sections

    found, store = _recorded(place), store_at(place)
    kept = [one for one in found if experiment in (None, one.experiment)]
    about = {one.experiment: one for one in overviews(kept, store)}
    grids = trigger_pictures(kept, store) if store is not None else []
    return page(sections(found, experiment), about, grids, refresh_s)


def _serve(place: str, experiment: str | None, port: int) -> None:
    from recipe_ray.report.charts import require_library
    from recipe_ray.report.serve import REFRESH_S, PageServer

    require_library()
    with PageServer(lambda: _page(place, experiment, REFRESH_S), port) as server:
        typer.echo(f"{server.url} shows {place}, on this machine only; Ctrl-C ends it", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("no longer shown; a sweep that runs is not affected", err=True)


def _recorded(place: str) -> list[Recorded]:
    from recipe_ray.report.load import recorded
    from recipe_ray.store.remote import is_remote

    if is_remote(place):
        return recorded(place)
    path = local_path(place, "PATH", _WANTED)
    if path.is_dir() or path.suffix.lower() == ".parquet":
        found = recorded(str(path))
        if found or not path.is_dir() or not any(path.iterdir()):
            return found
        some = ", ".join(sorted(entry.name for entry in path.iterdir())[:4])
        raise SpecError(f"no results of an experiment in {place} (it has {some}); give {_WANTED}")
    why = f"{place} is another kind of file" if path.exists() else why_missing(place)
    raise SpecError(f"no store at {place}: {why}; give {_WANTED}")
