"""The commands and where each is."""

import logging
from collections.abc import Callable
from typing import Annotated

import typer
from transformers.utils import logging as transformers_logging

from recipe_ray import __version__
from recipe_ray.cli import grid, report, search, single, status

app = typer.Typer(
    name="recipe-ray",
    help="Removes backdoors from pre-trained models, and measures that it did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"recipe-ray {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    logging.getLogger("recipe_ray").addHandler(logging.NullHandler())
    # bars for writing a model would tear ours apart
    hide_bars: Callable[[], None] = transformers_logging.disable_progress_bar
    hide_bars()
    for noisy in ("transformers", "datasets", "huggingface_hub", "httpx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


app.command("purify")(single.purify_command)
app.command("backdoor")(single.backdoor_command)
app.command("evaluate")(single.evaluate_command)
app.command("sweep")(grid.sweep_command)
app.command("search")(search.search_command)
app.command("plan")(grid.plan_command)
app.command("debug")(grid.debug_command)
app.command("report")(report.report_command)
app.command("status")(status.status_command)
app.command("list")(report.list_command)
