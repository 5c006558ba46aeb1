"""One suspicious model is scanned, cleaned, judged and put into a folder with its card.

If a task is given, it is also measured there before and after. That is the laboratory's side: the
purifier sees neither the task nor triggers, and its weights are the same without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from recipe_ray.api.places import Named, data_locations, output_folder
from recipe_ray.api.running import HERE, Listener, Workers, run_stages
from recipe_ray.base.errors import DataError, SpecError

if TYPE_CHECKING:
    from pathlib import Path

    from recipe_ray.api.before_after import NotScanned, Scanning
    from recipe_ray.api.published import Evaluated, Purified
    from recipe_ray.api.purification import AtHand, Purification
    from recipe_ray.api.tuning import FineTuning, Side
    from recipe_ray.data.sources import Locations
    from recipe_ray.models.family import PTM, ModelRef
    from recipe_ray.stages.finetune import FinetuneStage
    from recipe_ray.stages.pretrain import PretrainStage
    from recipe_ray.stages.purify import PurifyStage
    from recipe_ray.stages.run import Run
    from recipe_ray.stages.stage import Context, Stage
    from recipe_ray.store.rows import Measurement
    from recipe_ray.store.store import Store

BUDGET_S = 600.0  # of each scan
MAX_ROUNDS = 3
_AIMED = (
    "note: the scan finds inputs that no clean model of this make reacts to so; `--defense "
    "unlearn` trains away what scans find and moves the rest less (docs/purify.md)"
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a purification; `opening` are the further arguments of `parse_model`.

    `scan_budget_s` is None for no scan, `most_rounds` is None for one round whatever the scan says.
    `evaluation` says how the model is fine-tuned before and after, `floor` is a clean model that is
    fine-tuned in the same way.
    """

    model: Named
    aux: Named
    out: str
    aux_size: int | None = None
    text_column: str | None = None
    preset: str | None = None
    defense: Named | None = None
    changes: Sequence[str] = ()
    accept_harm: bool = False
    scan_budget_s: float | None = BUDGET_S
    most_rounds: int | None = None
    seed: int = 0
    data: str | None = None
    opening: Mapping[str, Any] = field(default_factory=dict)
    workers: Workers = HERE
    evaluation: FineTuning | None = None
    floor: Named | None = None

    def check(self) -> Path:
        """Return the folder for the result; raise UserError for what cannot be as it is asked."""
        from recipe_ray.api.folder import check_free

        if self.most_rounds is not None and self.scan_budget_s is None:
            raise SpecError("--until-clean needs the scan: leave out --no-scan")
        if self.preset is not None and self.defense is not None:
            raise SpecError("--preset and --defense both choose the settings: give one of them")
        if self.evaluation is None and self.floor is not None:
            raise SpecError("--floor: it is fine-tuned as the model is; give --evaluate TASK, too")
        target = output_folder(self.out, "--out")
        check_free(target)
        return target

    def prepared(self, listener: Listener) -> tuple[ModelRef, Purification, AtHand]:
        """Return the model, what is to be done, and what was read for it; say all of it."""
        from recipe_ray.api.arguments import (
            columns_named,
            parse_corpus,
            parse_defense,
            parse_model,
        )
        from recipe_ray.api.purification import prepare
        from recipe_ray.defenses.recipe import Recipe

        locations = data_locations(self.data)
        chosen = parse_model(self.model, **self.opening)
        columns = columns_named(text=self.text_column)
        found = parse_corpus(self.aux, self.aux_size, columns, chosen)
        defense = None
        if self.defense is not None and self.defense != Recipe.name:  # its mere name: by the rule
            defense = parse_defense(self.defense)
        about = (locations, self.seed, self.preset, list(self.changes), defense)
        plan, at_hand = prepare(chosen, found.component, *about)
        nobody = self.defense is None and self.preset is None and not self.changes
        plan = replace(plan, open=nobody)
        for note in found.notes:
            listener.say(note)
        listener.say(f"data: {plan.data}")
        if not plan.open:
            _say_settings(plan, listener)
        _note(plan.notes, listener)
        return chosen, plan, at_hand


def purified(asked: Asked, listener: Listener) -> tuple[Purified, Mapping[str, Any]]:
    """Purify a model into its folder; return all that was seen, and the content of `result.json`.

    Raises HarmError before anything is purified if the model would probably be damaged, and other
    UserErrors for what cannot be used; then there is no folder.
    """
    from recipe_ray.api.folder import work_store
    from recipe_ray.api.published import publish

    target = asked.check()
    chosen, plan, at_hand = asked.prepared(listener)
    with work_store(target, listener) as store:
        work = _Work(store, at_hand, asked.workers, listener)
        evaluating = None
        if asked.evaluation is not None:
            evaluating = _Evaluating(asked, asked.evaluation, chosen, store, listener)
            evaluating.before()
        done = work.purified(plan, asked, evaluating)
        result = publish(done, store, target)
    for warning in result["warnings"]:
        if warning not in (done.accepted, *plan.doubts):
            listener.warn(warning)
    _note([one for one in result["notes"] if one not in done.plan.notes], listener)
    return done, result


class _Work:
    """The work of one purification, in a store next to the folder that it ends in."""

    def __init__(self, store: Store, at_hand: AtHand, workers: Workers, listener: Listener) -> None:
        self.store = store
        self._at_hand, self._workers, self._listener = at_hand, workers, listener

    def purified(
        self, plan: Purification, asked: Asked, evaluating: _Evaluating | None
    ) -> Purified:
        """Fit the head that is missing, look, scan, purify, scan, in rounds if that is asked for.

        Raises HarmError before anything is purified if the head would hold nothing.
        """
        from recipe_ray.api.before_after import Scanning, scanned, suspicious
        from recipe_ray.api.published import Purified
        from recipe_ray.api.purification import check_head, held_otherwise
        from recipe_ray.api.rounds import Rounder
        from recipe_ray.stages.pretrain import PretrainStage

        stage, parent = plan.stage, plan.stage.parent
        with self._workers.started():
            if isinstance(parent, PretrainStage):
                self._run(parent, partial(_fit_head, parent, self._at_hand))
            before = self._at_hand.look(stage, self.store)
            scanning = self._scanning(stage, before.ptm, asked)
            plan = decided(plan, scanning, before.ptm, self._listener)
            held = held_otherwise(plan, before)
            _note(held.notes[len(plan.notes) :], self._listener)
            plan, stage = held, held.stage
            said, accepted = check_head(stage, before, accept=asked.accept_harm)
            if said is not None:
                self._listener.say(f"head: {said}")
            if accepted is not None:
                self._listener.warn(accepted)
            found, scan = None, None
            if isinstance(scanning, Scanning):
                found, scan = scanned(self.store, scanning, before.ptm, self._run_here)
            if found is not None and suspicious(found) and not stage.defense.scans:
                self._listener.say(_AIMED)
            in_process = self._workers.in_process
            rounder = Rounder(
                self.store, self._at_hand, self._run, in_process, scan, self._listener
            )
            rounds = rounder.purify(stage, before, asked.most_rounds)
        evaluated = evaluating.after(rounds.kept.stage) if evaluating is not None else None
        name = stage.model.label()
        return Purified(name, plan, rounds, scanning, found, accepted, asked.accept_harm, evaluated)

    def _scanning(self, stage: PurifyStage, ptm: PTM, asked: Asked) -> Scanning | NotScanned:
        """Say how the PTM is scanned, or why it is not, which is a DataError if it must be."""
        from recipe_ray.api.before_after import NotScanned, plan_scan

        if asked.scan_budget_s is None:
            return NotScanned("--no-scan was given")
        found = plan_scan(stage, ptm, self.store, self._at_hand.feed, asked.scan_budget_s)
        if isinstance(found, NotScanned) and asked.most_rounds is not None:
            raise DataError(f"--until-clean needs the scan, and there can be none: {found.why}")
        said = [f"no scan: {found.why}"] if isinstance(found, NotScanned) else found.said
        for line in said:
            self._listener.say(line)
        return found

    def _run(self, stage: Stage, run: Run | None) -> None:
        self._run_at(self._workers, stage, run)

    def _run_here(self, stage: Stage, run: Run | None) -> None:
        self._run_at(HERE, stage, run)

    def _run_at(self, workers: Workers, stage: Stage, run: Run | None) -> None:
        feed = self._at_hand.feed
        about = (self.store, feed.locations, self._listener, workers)
        run_stages("purify", [stage], *about, feed=feed, run=run)


class _Evaluating:
    """Fine-tunes the model before and after, and a clean one, in the same way."""

    def __init__(
        self, asked: Asked, how: FineTuning, model: ModelRef, store: Store, listener: Listener
    ) -> None:
        from recipe_ray.api.arguments import parse_model

        self._how, self._store, self._listener = how, store, listener
        self._places: Locations = how.locations()
        self._model, self._seed = model, asked.seed
        self._first = how.stage(model, asked.seed, listener)
        self._stages = {"before": self._first}
        if asked.floor is not None:
            clean = parse_model(asked.floor, **asked.opening)
            self._stages["floor"] = how.stage(clean, asked.seed, Listener())
        self._sides: dict[str, Side] = {}

    def before(self) -> None:
        """Measure the model as it was given, and the clean one: a wrong trigger ends it here."""
        self._sides = {side: self._measured(stage) for side, stage in self._stages.items()}

    def after(self, stage: PurifyStage) -> Evaluated:
        """Measure what a purification left; return all sides, in the order for people."""
        from recipe_ray.api.published import Evaluated

        last = self._how.stage(self._model, self._seed, Listener(), parent=stage)
        sides = {"before": self._sides["before"], "after": self._measured(last)}
        if "floor" in self._sides:
            sides["floor"] = self._sides["floor"]
        task = self._first.task
        does = f"{self._model.reads}-classification"
        return Evaluated(task.label(), self._first.triggers, self._seed, sides, does)

    def _measured(self, stage: FinetuneStage) -> Side:
        from recipe_ray.api.tuning import Side, tuned

        rows = tuned(stage, self._store, self._places, self._listener).to_pylist()
        return Side(stage.model.label(), [rows])


def decided(
    plan: Purification, scanning: Scanning | NotScanned, ptm: PTM, listener: Listener
) -> Purification:
    """Return the plan with the way that what a scan can tell leads to, and say its settings."""
    from recipe_ray.api.before_after import Scanning
    from recipe_ray.api.purification import guided

    if not plan.open:
        return plan
    if isinstance(scanning, Scanning):
        plan = guided(plan, ptm.make, scanning.before.detectors)
    _say_settings(plan, listener)
    return plan


def _say_settings(plan: Purification, listener: Listener) -> None:
    listener.say(f"settings: {plan.reason}")
    for doubt in plan.doubts:
        listener.warn(doubt)


def _note(notes: Sequence[str], listener: Listener) -> None:
    for note in notes:
        listener.say(f"note: {note}")


def _fit_head(head: PretrainStage, at_hand: AtHand, context: Context) -> list[Measurement]:
    ptm = at_hand.take()
    return head.run(context) if ptm is None else head.complete(ptm, context)
