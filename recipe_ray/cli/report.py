"""The command that shows what came of experiments; it starts no Ray and loads no model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.cli.options import DEFAULT_STORE, JsonOption
from recipe_ray.report.contents import sections
from recipe_ray.report.document import as_json
from recipe_ray.report.figures import draw, refuse_no_figure
from recipe_ray.report.pictures import draw_triggers
from recipe_ray.report.recorded import export, recorded, store_at
from recipe_ray.report.terminal import Terminal, markdown


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
        Path | None,
        typer.Option(help="Folder for Figures 2 and 3, searches, patches (extra `figures`)."),
    ] = None,
    export_: Annotated[
        Path | None,
        typer.Option("--export", help="Folder to keep each experiment's plan and rows in."),
    ] = None,
) -> None:
    """Show ACC, AASR and MASR of every cell beside the clean PTM's and the paper's."""
    found = recorded(place)
    names = [one.experiment for one in found]
    if experiment is not None and experiment not in names:
        raise SpecError(f"{place}: " + unknown("experiment", experiment, names))
    shown = sections(found, experiment)
    if json_:
        typer.echo(as_json(shown))
    else:
        drawn = [table for section in shown for table in section.tables()]
        if markdown_:
            typer.echo(markdown(drawn), nl=False)
        else:
            Console().print(Terminal(drawn))
    kept = [one for one in found if experiment in (None, one.experiment)]
    written: list[Path] = []
    if figures is not None:
        store = store_at(place)
        grids = draw_triggers(kept, store, figures) if store is not None else []
        written = [*draw(shown, figures), *grids] or refuse_no_figure()
    if export_ is not None:
        written += export(kept, export_)
    for file in written:
        typer.echo(f"wrote {file}", err=True)
