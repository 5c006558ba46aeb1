"""The command that shows what came of experiments; it starts no Ray and loads no model."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.paths import local_path, why_missing
from recipe_ray.cli.options import DEFAULT_STORE, JsonOption, output_folder
from recipe_ray.report.contents import sections
from recipe_ray.report.document import as_json
from recipe_ray.report.figures import draw, refuse_no_figure
from recipe_ray.report.pictures import draw_triggers
from recipe_ray.report.recorded import Recorded, export, recorded, store_at
from recipe_ray.report.terminal import Terminal, markdown
from recipe_ray.stages.location import is_remote

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
            help="Folder for Figures 2 and 3, searches, patches (extra `figures`).",
        ),
    ] = None,
    export_: Annotated[
        str | None,
        typer.Option(
            "--export", metavar="FOLDER", help="Folder to keep each experiment's plan and rows in."
        ),
    ] = None,
) -> None:
    """Show ACC, AASR and MASR of every cell beside the clean PTM's and the paper's."""
    pictured = None if figures is None else output_folder(figures, "--figures")
    kept_in = None if export_ is None else output_folder(export_, "--export")
    found = _recorded(place)
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
    if pictured is not None:
        store = store_at(place)
        grids = draw_triggers(kept, store, pictured) if store is not None else []
        written = [*draw(shown, pictured), *grids] or refuse_no_figure()
    if kept_in is not None:
        written += export(kept, kept_in)
    for file in written:
        typer.echo(f"wrote {file}", err=True)


def _recorded(place: str) -> list[Recorded]:
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
