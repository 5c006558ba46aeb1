"""`recipe-ray purify`: one suspicious model is scanned, cleaned, judged and published.

Exit codes: 0 a model was written, 2 an error, 3 harm is likely, 4 a model was written and the scan
is not silent (docs/purify.md).
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from recipe_ray.base.errors import DataError, SpecError
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
    data_locations,
    output_folder,
    set_up_logging,
    with_groups,
)
from recipe_ray.cli.single import columns_named, processes, run_stages, say, warn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from recipe_ray.cli.before_after import NotScanned, Scanning
    from recipe_ray.cli.published import Purified
    from recipe_ray.cli.purification import AtHand, Purification
    from recipe_ray.models.family import PTM
    from recipe_ray.stages.pretrain import PretrainStage
    from recipe_ray.stages.purify import PurifyStage
    from recipe_ray.stages.run import Run
    from recipe_ray.stages.stage import Context, Stage
    from recipe_ray.store.rows import Measurement
    from recipe_ray.store.store import Store

BUDGET_S = 300.0  # of each scan
MAX_ROUNDS = 3


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
    from recipe_ray.cli.arguments import parse_corpus
    from recipe_ray.cli.card import check_free, work_store
    from recipe_ray.cli.published import publish
    from recipe_ray.cli.purification import prepare

    set_up_logging(telling.verbose)
    if until_clean and no_scan:
        raise SpecError("--until-clean needs the scan: leave out --no-scan")
    target = output_folder(out, "--out")
    check_free(target)
    locations = data_locations(data)
    chosen = opening.model(model)
    found = parse_corpus(aux, aux_size, columns_named(text=text_column), chosen)
    plan, at_hand = prepare(chosen, found.component, locations, seed, preset, set_ or [])
    if not telling.quiet:
        say(found)
        typer.echo(f"data: {plan.data}", err=True)
        typer.echo(f"settings: {plan.reason}", err=True)
    _note(plan.notes, telling)
    warn(plan.doubts)
    limit = max_rounds if until_clean else None
    budget_s = None if no_scan else scan_budget
    with work_store(target) as store:
        work = _Work(store, at_hand, workers, telling)
        done = work.purified(plan, budget_s, limit, accept_harm=accept_harm)
        result = publish(done, store, target)
    warn([one for one in result["warnings"] if one not in (done.accepted, *plan.doubts)])
    _note([one for one in result["notes"] if one not in done.plan.notes], telling)
    if json_:
        typer.echo(json.dumps(result, indent=1, ensure_ascii=True))
    else:
        for line in done.printed():
            typer.echo(line)
        typer.echo(f"purified model and its card: {target}")
    raise typer.Exit(done.exit_code)


class _Work:
    """The work of one purification, in a store next to the folder that it ends in."""

    def __init__(self, store: Store, at_hand: AtHand, workers: int, telling: Telling) -> None:
        self.store = store
        self._at_hand, self._workers, self._telling = at_hand, workers, telling

    def purified(
        self, plan: Purification, budget_s: float | None, limit: int | None, *, accept_harm: bool
    ) -> Purified:
        """Fit the head that is missing, look, scan, purify, scan; `limit`: of rounds until silent.

        Raises HarmError before anything is purified if the head would hold nothing.
        """
        from recipe_ray.cli.before_after import Scanning, scanned
        from recipe_ray.cli.published import Purified
        from recipe_ray.cli.purification import check_head, held_otherwise
        from recipe_ray.cli.rounds import Rounder
        from recipe_ray.stages.pretrain import PretrainStage

        stage, parent = plan.stage, plan.stage.parent
        with processes(self._workers):
            if isinstance(parent, PretrainStage):
                self._run(parent, partial(_fit_head, parent, self._at_hand))
            before = self._at_hand.look(stage, self.store)
            held = held_otherwise(plan, before)
            _note(held.notes[len(plan.notes) :], self._telling)
            plan, stage = held, held.stage
            said, accepted = check_head(stage, before, accept=accept_harm)
            if said is not None and not self._telling.quiet:
                typer.echo(f"head: {said}", err=True)
            warn([accepted] if accepted is not None else [])
            scanning = self._scanning(stage, before.ptm, budget_s, needed=limit is not None)
            found, scan = None, None
            if isinstance(scanning, Scanning):
                found, scan = scanned(self.store, scanning, before.ptm, self._run_here)
            rounder = Rounder(self.store, self._at_hand, self._run, self._workers == 1, scan)
            rounds = rounder.purify(stage, before, limit)
        name = stage.model.label()
        return Purified(name, plan, rounds, scanning, found, accepted, accept_harm)

    def _scanning(
        self, stage: PurifyStage, ptm: PTM, budget_s: float | None, *, needed: bool
    ) -> Scanning | NotScanned:
        """Say how the PTM is scanned, or why it is not, which is a DataError if it must be."""
        from recipe_ray.cli.before_after import NotScanned, plan_scan

        if budget_s is None:
            return NotScanned("--no-scan was given")
        found = plan_scan(stage, ptm, self.store, self._at_hand.feed, budget_s)
        if isinstance(found, NotScanned) and needed:
            raise DataError(f"--until-clean needs the scan, and there can be none: {found.why}")
        said = [f"no scan: {found.why}"] if isinstance(found, NotScanned) else found.said
        for line in () if self._telling.quiet else said:
            typer.echo(line, err=True)
        return found

    def _run(self, stage: Stage, run: Run | None) -> None:
        self._run_with(stage, run, self._workers)

    def _run_here(self, stage: Stage, run: Run | None) -> None:
        self._run_with(stage, run, 1)

    def _run_with(self, stage: Stage, run: Run | None, workers: int) -> None:
        feed = self._at_hand.feed
        where = (self.store, feed.locations)
        run_stages("purify", [stage], *where, workers, self._telling, feed=feed, run=run)


def _note(notes: Iterable[str], telling: Telling) -> None:
    for note in () if telling.quiet else notes:
        typer.echo(f"note: {note}", err=True)


def _fit_head(head: PretrainStage, at_hand: AtHand, context: Context) -> list[Measurement]:
    ptm = at_hand.take()
    return head.run(context) if ptm is None else head.complete(ptm, context)
