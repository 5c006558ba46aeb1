"""Commands for one model: backdoor, evaluate; and what every command for one model shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from recipe_ray.base.errors import SpecError, StageFailedError
from recipe_ray.base.printable import printable
from recipe_ray.cli.options import (
    DataOption,
    ModelArgument,
    Opening,
    OutOption,
    SeedOption,
    SetOption,
    Telling,
    WorkersOption,
    data_locations,
    output_folder,
    set_up_logging,
    with_groups,
)

if TYPE_CHECKING:
    from recipe_ray.attacks.attack import Attack
    from recipe_ray.cli.own_data import Found
    from recipe_ray.data.batches import LocalFeed
    from recipe_ray.data.sources import Locations
    from recipe_ray.models.family import ModelRef
    from recipe_ray.stages.pretrain import PretrainStage
    from recipe_ray.stages.run import Run
    from recipe_ray.stages.stage import Stage
    from recipe_ray.store.store import Store


def warn(warnings: Iterable[str]) -> None:
    for warning in warnings:
        typer.secho(f"warning: {printable(warning)}", fg="yellow", err=True)


@with_groups
def backdoor_command(
    model: ModelArgument,
    attack: Annotated[
        str, typer.Option("--attack", help="An attack of `recipe-ray list attacks`.")
    ],
    out: OutOption,
    set_: SetOption = None,
    seed: SeedOption = 0,
    workers: WorkersOption = 1,
    data: DataOption = None,
    *,
    opening: Opening,
    telling: Telling,
) -> None:
    """Put a backdoor into a model, for research; the result's card says so plainly."""
    from recipe_ray.base.spec import explained
    from recipe_ray.cli.arguments import parse_attack
    from recipe_ray.cli.card import CARD, backdoored_card, check_free, export, work_store
    from recipe_ray.cli.purification import data_warnings, measured_values, refuse_untrained
    from recipe_ray.stages.backdoor import BackdoorStage

    set_up_logging(telling.verbose)
    target = output_folder(out, "--out")
    check_free(target)
    locations = data_locations(data)
    chosen = opening.model(model)
    planned = parse_attack(attack, set_ or []).pinned()
    if not planned.poisons:
        raise SpecError(
            f"--attack {planned.name}: it poisons nothing; see `recipe-ray list attacks`"
        )
    refuse_untrained(chosen)
    contents = {c.name: c.identity_at(locations)["source"] for c in planned.corpora()}
    with explained("--attack"):
        stage = BackdoorStage(
            model=chosen,
            parent=_completed(chosen, planned, locations, seed),
            attack=planned,
            seed=seed,
            content=contents,
        )
    with work_store(target) as store:
        run_stages("backdoor", [stage], store, locations, workers, telling)
    measured = measured_values(store, stage)
    warn(data_warnings(measured))
    notes = chosen.left_out()
    for note in () if telling.quiet else notes:
        typer.echo(f"note: {note}", err=True)
    card = backdoored_card(chosen.label(), chosen.opens_with, planned, measured, notes)
    export(store, stage, target, lambda said: {CARD: card})
    typer.echo(f"BACKDOORED model, for research only: {out}")


def columns_named(**asked: str | None) -> dict[str, str]:
    return {what: column for what, column in asked.items() if column is not None}


def say(found: Found) -> None:
    for note in found.notes:
        typer.echo(printable(note), err=True)


def _completed(
    model: ModelRef, attack: Attack, locations: Locations, seed: int
) -> PretrainStage | None:
    from recipe_ray.stages.pretrain import PretrainStage

    # a PTM without pre-training head gets one, on the attacker's own corpus
    if not model.needs_pretraining:
        return None
    if not attack.corpora():
        raise SpecError(
            f"--attack {attack.name}: it trains on nothing, and MODEL {model.label()!r} has no "
            "pre-training head; give a model with one, or an attack with a corpus"
        )
    corpus = attack.corpora()[0]
    content = corpus.identity_at(locations)["source"]
    return PretrainStage(model=model, seed=seed, corpus=corpus, content=content)


@contextmanager
def processes(workers: int) -> Iterator[None]:
    """Start or attach to one Ray for all stages of a command, if they take more than a process."""
    if workers == 1:
        yield
        return
    from recipe_ray.distributed.cluster import connected  # Ray is imported only if it is used
    from recipe_ray.experiment.spec import Launch

    with connected(None, Launch(), nested=True):
        yield


def run_stages(
    command: str,
    leaves: Sequence[Stage],
    store: Store,
    locations: Locations,
    workers: int,
    telling: Telling,
    *,
    feed: LocalFeed | None = None,
    run: Run | None = None,
) -> None:
    """Run a command's stages and their ancestors, and leave its plan in the store.

    In this process `feed` and `run` (of the last stage) use what is in memory.
    """
    from recipe_ray.cli.display import Display
    from recipe_ray.experiment.collect import run_planned
    from recipe_ray.experiment.plan import plan_of
    from recipe_ray.experiment.spec import Launch
    from recipe_ray.stages.stage import makers_of_ptms

    plan = plan_of(command, leaves, Launch(workers=dict.fromkeys(makers_of_ptms(), workers)))
    with Display(len(plan.stages), quiet=telling.quiet, verbose=telling.verbose) as display:
        if workers == 1:
            how = {"on_progress": display.on_progress, "feed": feed, "run": run}
            run_planned(plan, plan.stages.values(), store, locations, **how)
            return
        from recipe_ray.distributed.sweep import sweep

        outcome = sweep(plan, store, locations, on_event=display.on_event)
    if outcome.failed:
        raise StageFailedError("\n".join(outcome.failed.values()))
