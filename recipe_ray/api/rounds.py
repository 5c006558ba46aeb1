"""Purifying in rounds: a round is a stage of its own on what the one before left.

Without `--until-clean` there is one. With it there are more until the scan is silent, the guard
sees harm, or the limit is reached. A round that does harm is not kept, unless it is the first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from recipe_ray.api.before_after import Record, silent
from recipe_ray.api.harm import harm_warnings
from recipe_ray.api.purification import AtHand, measured_values
from recipe_ray.stages.evaluate import HeldOutEval, compare
from recipe_ray.stages.purify import Before, PurifyStage
from recipe_ray.stages.stage import Stage
from recipe_ray.store.store import Store

if TYPE_CHECKING:
    from recipe_ray.api.running import Listener
    from recipe_ray.stages.run import Run

ENDS = {
    "asked": "one round was asked for",
    "silent": "the scan is silent",
    "limit": "the limit of rounds was reached and the scan is not silent",
    "harm": "the guard on held-out data sees harm, and the scan is not silent",
    "untold": "no detector could tell whether the model is silent",
}


@dataclass(frozen=True)
class Round:
    """One round: its stage, what was measured against the model as given, the scan afterwards."""

    stage: PurifyStage
    measured: dict[str, float]
    scan: Record | None
    harm: list[str]

    @property
    def is_silent(self) -> bool | None:
        """Whether the scan afterwards found nothing; None if it cannot tell or there was none."""
        return None if self.scan is None else silent(self.scan)


@dataclass(frozen=True)
class Rounds:
    """All rounds, which of them is the result, and what ended them (a key of ENDS)."""

    done: list[Round]
    kept: Round
    ended: str


@dataclass
class Rounder:
    """Runs rounds; `run_stage` runs one stage in the store, with something in memory if it can."""

    store: Store
    at_hand: AtHand
    run_stage: Callable[[Stage, Run | None], None]
    in_process: bool  # else workers load the model themselves
    scan: Callable[[PurifyStage], Record] | None
    listener: Listener
    done: list[Round] = field(default_factory=list)

    def purify(self, stage: PurifyStage, before: Before, limit: int | None) -> Rounds:
        """Purify once, or up to `limit` times until the scan is silent.

        `before` is the model as it was given, which the first round takes over.
        """
        given = before.shown
        held: list[Before] = [before]
        del before
        while True:
            # taken out: while DDP workers work, no model is kept here
            run = partial(stage.purify, held.pop()) if self.in_process else None
            held.clear()
            self.run_stage(stage, run)
            del run
            following = stage.revised(parent=stage, seed=stage.seed + 1)
            measured = measured_values(self.store, stage)
            if self.done:
                held.append(self.at_hand.look(following, self.store))
                measured |= _against(given, held[0].shown)
            self.done.append(self._round(stage, measured))
            ended = self._ended(limit)
            if ended is not None:
                return Rounds(self.done, self._kept(), ended)
            self.listener.say(f"round {len(self.done)}: the scan is not silent; going on")
            held = held or [self.at_hand.look(following, self.store)]
            stage = following

    def _round(self, stage: PurifyStage, measured: dict[str, float]) -> Round:
        harm = harm_warnings(measured, stage.model.loss_unit, stage.model.reads)
        return Round(stage, measured, self.scan(stage) if self.scan is not None else None, harm)

    def _ended(self, limit: int | None) -> str | None:
        """Return what ends the rounds now; None if there is to be another one."""
        last = self.done[-1]
        if limit is None:
            return "asked"
        if last.is_silent is None:
            return "untold"
        if last.is_silent and (not last.harm or len(self.done) == 1):
            return "silent"
        if last.harm:
            return "harm"
        return "limit" if len(self.done) == limit else None

    def _kept(self) -> Round:
        """Return the last round; the one before it if the last did harm."""
        last = self.done[-1]
        return self.done[-2] if last.harm and len(self.done) > 1 else last


def _against(given: HeldOutEval, now: HeldOutEval) -> dict[str, float]:
    return {one.metric: one.value for one in compare(given, now)}
