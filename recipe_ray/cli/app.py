"""The commands and the module of each.

A module of a command is light: what it needs of torch, transformers or Ray, it imports when the
command runs, so that `--help`, `list`, `status` and a usage error start at once.
"""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.main import get_command

from recipe_ray import __version__
from recipe_ray.cli.exits import Commands

# command: its module, its function and, if it needs one, its class there; a group of commands: its
# module and its typer.Typer
COMMANDS: dict[str, tuple[str, ...]] = {
    "scan": ("scan", "scan_command", "ScanCommand"),
    "purify": ("purify", "purify_command"),
    "backdoor": ("single", "backdoor_command"),
    "evaluate": ("evaluate", "evaluate_command"),
    "compare": ("evaluate", "compare_command"),
    "sweep": ("grid", "sweep_command"),
    "search": ("search", "search_command"),
    "plan": ("grid", "plan_command"),
    "debug": ("grid", "debug_command"),
    "report": ("report", "report_command"),
    "status": ("status", "status_command"),
    "list": ("listing", "list_command"),
    "init": ("init", "init_command"),
    "store": ("store", "store_group"),
    "doctor": ("doctor", "doctor_command"),
}


class LazyCommands(Commands):
    """All commands; the module of one is imported if it is named, and of all for --help."""

    def __init__(self, **settings: Any) -> None:
        """Make the group of `COMMANDS`."""
        super().__init__(**settings)
        names: dict[str, Any] = dict.fromkeys(COMMANDS)
        self.commands = names

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        file, function, *own = COMMANDS[cmd_name]
        module = import_module(f"recipe_ray.cli.{file}")
        found = getattr(module, function)
        if isinstance(found, typer.Typer):
            return get_command(found)
        alone = typer.Typer(add_completion=False)
        alone.command(cmd_name, cls=getattr(module, own[0]) if own else None)(found)
        return get_command(alone)


app = typer.Typer(
    name="recipe-ray",
    help="Removes backdoors from pre-trained models, and measures that it did.",
    cls=LazyCommands,
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
    # a log that cannot be written (a full disk) is no traceback on the screen
    logging.raiseExceptions = False
    # libraries that are imported later, if at all, take their levels from here
    for variable, value in _QUIET.items():
        os.environ.setdefault(variable, value)
    if "transformers" in sys.modules:  # if this process has run something before
        sys.modules["transformers"].utils.logging.disable_progress_bar()
    for noisy in ("transformers", "datasets", "huggingface_hub", "httpx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
