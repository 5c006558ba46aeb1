"""`recipe-ray scan`: is this model backdoored? One model or many, without triggers or labels.

Exit codes: 0 nothing found, 1 suspicious, 2 an error, 3 no verdict on this kind of model, 4 wrong
use of the command. For several models it is the first of 1, 2, 3, 0 that is true of any of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from recipe_ray.api.places import store_or_temporary
from recipe_ray.api.scan_report import as_html, as_json, as_sarif, printed
from recipe_ray.api.scans import Asked, Scanner, exit_code, listed
from recipe_ray.base.errors import SpecError
from recipe_ray.cli.options import (
    AddressOption,
    JsonOption,
    Opening,
    SeedOption,
    StoreOption,
    Telling,
    TextColumnOption,
    set_up_logging,
    with_groups,
)
from recipe_ray.cli.single import Screen

USAGE = 4
UsageError: Any = typer.BadParameter.__mro__[1]  # of the click that typer has


class ScanCommand(TyperCommand):
    """The command, with an exit code of its own for wrong options."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """Read the words of the command line."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except UsageError as error:
            error.show()
            raise typer.Exit(USAGE) from None


@with_groups
def scan_command(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL...",
            help="Local folders, hub ids, registered models, or folders of model folders.",
        ),
    ] = None,
    data: Annotated[
        str, typer.Option("--data", help="Unlabelled texts or images: a corpus, file or folder.")
    ] = "",
    from_file: Annotated[
        str | None, typer.Option("--models", metavar="FILE", help="A file with one model per line.")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="MODEL", help="A clean model of the same make."),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option("--detector", help="One of `recipe-ray list detectors`; default: all."),
    ] = None,
    json_: JsonOption = False,
    sarif: Annotated[str | None, typer.Option(metavar="FILE", help="Write SARIF 2.1.0.")] = None,
    html: Annotated[str | None, typer.Option(metavar="FILE", help="Write an HTML page.")] = None,
    text_column: TextColumnOption = None,
    at_once: Annotated[
        int,
        typer.Option(
            "--at-once",
            min=1,
            help="Models scanned at the same time; Ray runs them if there are several.",
        ),
    ] = 1,
    address: AddressOption = None,
    store: StoreOption = "",
    seed: SeedOption = 0,
    *,
    opening: Opening,
    telling: Telling,
) -> None:
    """Say whether models look backdoored, and which inputs give them away."""
    set_up_logging(telling.verbose)
    with _as_usage():
        if not data:
            raise SpecError("--data: give unlabelled texts or images: a corpus, a file or a folder")
        named = [*(models or ()), *listed(from_file)]
        if not named:
            raise SpecError("MODEL: give one or more models, or --models FILE")
        for option, file in (("--sarif", sarif), ("--html", html)):
            if file is not None and not Path(file).absolute().parent.is_dir():
                raise SpecError(f"{option} {file}: the folder does not exist")
        ask = Asked.of(data, detector or (), seed, asdict(opening), text_column)
    screen = Screen(telling)
    with store_or_temporary(store) as kept:
        results = Scanner(ask, kept, at_once, address, screen).scanned(named, reference)
    for one in results:
        if one.error is not None and not telling.quiet:
            screen.warn(f"{one.model}: {one.error}")
    if json_:
        typer.echo(json.dumps(as_json(results), indent=1, ensure_ascii=True))
    else:
        typer.echo(printed(results))
    if sarif is not None:
        Path(sarif).write_text(json.dumps(as_sarif(results), indent=1))
    if html is not None:
        Path(html).write_text(as_html(results), encoding="utf-8")
    raise typer.Exit(exit_code(results))


@contextmanager
def _as_usage() -> Iterator[None]:
    """Turn an error in what was typed into the exit code for that."""
    try:
        yield
    except (SpecError, UnicodeDecodeError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(USAGE) from None
