"""`recipe-ray purify`: one suspicious model is cleaned, judged and published with its card."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipe_ray.base.spec import LARGEST
from recipe_ray.cli.options import (
    AdapterOption,
    DataOption,
    PickleOption,
    QuietOption,
    SetOption,
    VerboseOption,
    data_locations,
    output_folder,
    set_up_logging,
)
from recipe_ray.cli.single import (
    ModelArgument,
    OutOption,
    RevisionOption,
    SeedOption,
    TextColumnOption,
    WorkersOption,
    columns_named,
    processes,
    run_stage,
    say,
    warn,
)

if TYPE_CHECKING:
    from recipe_ray.cli.purification import AtHand
    from recipe_ray.stages.pretrain import PretrainStage
    from recipe_ray.stages.stage import Context
    from recipe_ray.store.rows import Measurement


def purify_command(
    model: ModelArgument,
    aux: Annotated[str, typer.Option("--aux", help="Corpus by name, or your own file or folder.")],
    out: OutOption,
    aux_size: Annotated[
        int | None, typer.Option(help="At most so many samples.", min=20, max=LARGEST)
    ] = None,
    text_column: TextColumnOption = None,
    preset: Annotated[str | None, typer.Option(help="paper-por, paper-badpre, ...")] = None,
    set_: SetOption = None,
    accept_harm: Annotated[
        bool,
        typer.Option(
            "--accept-harm",
            help="Go on where the model will probably be damaged (without it: exit code 3).",
        ),
    ] = False,
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    revision: RevisionOption = None,
    data: DataOption = None,
    allow_pickle: PickleOption = False,
    ignore_adapter: AdapterOption = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Clean one suspicious model with RECIPE; neither triggers nor downstream labels needed."""
    from recipe_ray.cli.arguments import parse_corpus, parse_model
    from recipe_ray.cli.card import check_free, work_store
    from recipe_ray.cli.purification import check_head, finish, prepare
    from recipe_ray.stages.pretrain import PretrainStage

    set_up_logging(verbose)
    target = output_folder(out, "--out")
    check_free(target)
    locations = data_locations(data)
    chosen = parse_model(
        model, allow_pickle=allow_pickle, revision=revision, ignore_adapter=ignore_adapter
    )
    found = parse_corpus(aux, aux_size, columns_named(text=text_column), chosen)
    purification, at_hand = prepare(chosen, found.component, locations, seed, preset, set_ or [])
    stage = purification.stage
    if not quiet:
        say(found)
        typer.echo(f"data: {purification.data}", err=True)
        typer.echo(f"settings: {purification.reason}", err=True)
        for note in purification.notes:
            typer.echo(f"note: {note}", err=True)
    warn(purification.doubts)
    how: dict[str, Any] = {"workers": workers, "verbose": verbose, "quiet": quiet}
    with work_store(target) as store, processes(workers):
        if isinstance(stage.parent, PretrainStage):
            fitted = partial(_fit_head, stage.parent, at_hand)
            run_stage(stage.parent, store, locations, feed=at_hand.feed, run=fitted, **how)
        before = at_hand.look(stage, store)
        said, accepted = check_head(stage, before, accept=accept_harm)
        if said is not None and not quiet:
            typer.echo(f"head: {said}", err=True)
        warn([accepted] if accepted is not None else [])
        run = partial(stage.purify, before) if workers == 1 else None
        del before  # DDP workers load the model themselves: it is not kept here while they work
        run_stage(stage, store, locations, feed=at_hand.feed, run=run, **how)
    notes, warnings = finish(purification, store, target, chosen.label(), accepted)
    warn([one for one in warnings if one != accepted and one not in purification.doubts])
    for note in () if quiet else notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"purified model and its card: {target}")


def _fit_head(head: PretrainStage, at_hand: AtHand, context: Context) -> list[Measurement]:
    ptm = at_hand.take()
    return head.run(context) if ptm is None else head.complete(ptm, context)
