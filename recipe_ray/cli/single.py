"""`recipe-ray backdoor`, and what every command for one model shows while it works."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recipe_ray.api.places import data_locations, output_folder
from recipe_ray.api.running import Listener, Watcher, Workers, run_stages
from recipe_ray.base.errors import SpecError
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
    set_up_logging,
    with_groups,
)

if TYPE_CHECKING:
    from recipe_ray.attacks.attack import Attack
    from recipe_ray.data.sources import Locations
    from recipe_ray.models.family import ModelRef
    from recipe_ray.stages.pretrain import PretrainStage


class Screen(Listener):
    """Shows on standard error what is said, and the progress of stages."""

    def __init__(self, telling: Telling) -> None:
        """`telling` says how much is shown; warnings always are."""
        super().__init__()
        self._telling = telling

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        if not self._telling.quiet:
            typer.echo(printable(sentence), err=True)

    def warn(self, sentence: str) -> None:
        """Print a warning."""
        typer.secho(f"warning: {printable(sentence)}", fg="yellow", err=True)

    def watching(self, num_stages: int) -> AbstractContextManager[Watcher]:
        """Return the display of the stages' progress."""
        from recipe_ray.cli.display import Display

        return Display(num_stages, quiet=self._telling.quiet, verbose=self._telling.verbose)


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
    from recipe_ray.api.arguments import parse_attack
    from recipe_ray.api.card import backdoored_card
    from recipe_ray.api.folder import check_free, export, work_store
    from recipe_ray.api.harm import data_warnings
    from recipe_ray.api.metadata import CARD, head, provenance
    from recipe_ray.api.purification import measured_values, refuse_untrained
    from recipe_ray.base.spec import explained
    from recipe_ray.stages.backdoor import BackdoorStage

    set_up_logging(telling.verbose)
    screen = Screen(telling)
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
    with work_store(target, screen) as store:
        run_stages("backdoor", [stage], store, locations, screen, Workers(workers))
    measured = measured_values(store, stage)
    for warning in data_warnings(measured):
        screen.warn(warning)
    notes = chosen.left_out()
    for note in notes:
        screen.say(f"note: {note}")
    source = provenance(chosen)

    def texts(_: list[str], folder: Path) -> dict[str, str]:
        top = head(chosen, source, folder, ["backdoored"], content=contents)
        return {CARD: backdoored_card(top, chosen.label(), planned, measured, notes)}

    export(store, stage, target, texts)
    typer.echo(f"BACKDOORED model, for research only: {out}")


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
