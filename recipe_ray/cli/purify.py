"""`recipe-ray purify`: suspicious models are scanned, cleaned, judged and published.

Exit codes: 0 a model was written, 2 an error, 3 harm is likely, 4 a model was written and the scan
is not silent (docs/purify.md).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from recipe_ray.api.purifying import BUDGET_S, MAX_ROUNDS, Asked, purified
from recipe_ray.api.running import Workers
from recipe_ray.base.limits import LARGEST
from recipe_ray.cli.options import (
    DataOption,
    ModelArgument,
    Opening,
    OutOption,
    SeedOption,
    SetOption,
    Telling,
    TextColumnOption,
    WorkersOption,
    set_up_logging,
    with_groups,
)
from recipe_ray.cli.single import Screen


@with_groups
def purify_command(
    model: ModelArgument,
    aux: Annotated[str, typer.Option("--aux", help="Corpus by name, or your own file or folder.")],
    out: OutOption,
    aux_size: Annotated[
        int | None, typer.Option(help="Use at most this many samples.", min=20, max=LARGEST)
    ] = None,
    text_column: TextColumnOption = None,
    preset: Annotated[str | None, typer.Option(help="paper-por, paper-badpre, ...")] = None,
    set_: SetOption = None,
    accept_harm: Annotated[
        bool,
        typer.Option(
            "--accept-harm",
            help="Continue even if the model will probably be damaged (otherwise: exit code 3).",
        ),
    ] = False,
    no_scan: Annotated[
        bool, typer.Option("--no-scan", help="Leave the scans before and after out.")
    ] = False,
    scan_budget: Annotated[
        float,
        typer.Option(
            "--scan-budget",
            metavar="SECONDS",
            min=1,
            help="What fits into about so many seconds is scanned, each time.",
        ),
    ] = BUDGET_S,
    until_clean: Annotated[
        bool,
        typer.Option(
            "--until-clean", help="Purify again until the scan is silent (else: exit code 4)."
        ),
    ] = False,
    max_rounds: Annotated[
        int, typer.Option("--max-rounds", min=1, max=20, help="Of --until-clean, at most.")
    ] = MAX_ROUNDS,
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    data: DataOption = None,
    json_: Annotated[bool, typer.Option("--json", help="Print result.json.")] = False,
    *,
    opening: Opening,
    telling: Telling,
) -> None:
    """Clean one suspicious model with RECIPE; neither triggers nor downstream labels needed."""
    set_up_logging(telling.verbose)
    asked = Asked(
        model=model,
        aux=aux,
        out=out,
        aux_size=aux_size,
        text_column=text_column,
        preset=preset,
        changes=tuple(set_ or ()),
        accept_harm=accept_harm,
        scan_budget_s=None if no_scan else scan_budget,
        most_rounds=max_rounds if until_clean else None,
        seed=seed,
        data=data,
        opening=asdict(opening),
        workers=Workers(workers),
    )
    done, result = purified(asked, Screen(telling))
    if json_:
        typer.echo(json.dumps(result, indent=1, ensure_ascii=True))
    else:
        for line in done.printed():
            typer.echo(line)
        typer.echo(f"purified model and its card: {out}")
    raise typer.Exit(done.exit_code)
