"""The commands and the module of each.

A module of a command is light: what it needs of torch, transformers or Ray, it imports when the
command runs, so that `--help`, `list`, `status` and a usage error start at once.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from recipe_ray import __version__
from recipe_ray.cli import grid, purify, report, scan, search, single, status
from recipe_ray.cli.exits import Commands

app = typer.Typer(
    name="recipe-ray",
    help="Removes backdoors from pre-trained models, and measures that it did.",
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    # bars for writing a model would break up ours
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"recipe-ray {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; with every command.")
    ] = False,
) -> None:
    del debug  # `main` looks for it: errors may come before the options are read
    logging.getLogger("recipe_ray").addHandler(logging.NullHandler())
    # libraries that are imported later, if at all, take their levels from here
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    if "transformers" in sys.modules:  # if this process has run something before
        sys.modules["transformers"].utils.logging.disable_progress_bar()
    for noisy in ("transformers", "datasets", "huggingface_hub", "httpx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


app.command("scan", cls=scan.ScanCommand)(scan.scan_command)
app.command("purify")(purify.purify_command)
app.command("backdoor")(single.backdoor_command)
app.command("evaluate")(single.evaluate_command)
app.command("sweep")(grid.sweep_command)
app.command("search")(search.search_command)
app.command("plan")(grid.plan_command)
app.command("debug")(grid.debug_command)
app.command("report")(report.report_command)
app.command("status")(status.status_command)
app.command("list")(report.list_command)
