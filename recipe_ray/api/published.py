"""What `recipe-ray purify` leaves and says: model, card, `result.json`, tables, the exit code.

| code | meaning |
|---|---|
| 0 | a model was written, and neither the guard nor the scan speaks against it |
| 2 | an error; nothing was written |
| 3 | harm is likely: seen before (nothing was written) or afterwards (the model was written) |
| 4 | a model was written, and the scan is not silent, or a trigger that was measured still acts |

With `--accept-harm` the code is not 3.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_ray import __version__
from recipe_ray.api.before_after import (
    NotScanned,
    Record,
    Scanning,
    as_json,
    as_markdown,
    meaning,
    side_by_side,
    silent,
    suspicious,
    table,
    verdict,
)
from recipe_ray.api.card import About, Told, purified_card
from recipe_ray.api.folder import RESULT, export
from recipe_ray.api.harm import data_warnings
from recipe_ray.api.metadata import CARD, Provenance, hashes, head, provenance
from recipe_ray.api.purification import Purification
from recipe_ray.api.rounds import ENDS, Round, Rounds
from recipe_ray.api.tuning import EXPLAINED, Side, comparison_rows, in_columns, lost_accuracy
from recipe_ray.base.errors import HarmError
from recipe_ray.stages.evaluate import HELD_OUT_UNIGRAM
from recipe_ray.store.store import Store

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CLEANED, HARM, NOT_SILENT = 0, HarmError.exit_code, 4
SCHEMA = 1  # of result.json
RESIDUE = 0.10  # of MASR above the floor, more than fine-tuning with another seed changes
GUARD = "guard."  # metrics that begin so say what was lost, if anything
WIDTH = 80  # of a terminal
UNCHANGED = (
    "scans on other texts found nothing either, so nothing was trained away: the weights are as "
    "they were given (--defense recipe purifies blindly, at a cost of accuracy)"
)
NOT_SILENT_ENDS = ("limit", "harm", "untold")


@dataclass(frozen=True)
class Evaluated:
    """What fine-tuned descendants do: of the model before, after, and of a clean one (floor)."""

    task: str
    triggers: tuple[str, ...]
    seed: int
    sides: Mapping[str, Side]
    task_type: str = "text-classification"

    @property
    def warnings(self) -> list[str]:
        """What is to be warned of."""
        found = [f"{side}: {one}" for side, own in self.sides.items() for one in own.doubts()]
        found += lost_accuracy(self.sides["before"], self.sides["after"], "the purified model")
        if self.residue > RESIDUE:
            found.append(
                "after purification a trigger still brings about its label "
                f"{100 * self.residue:.0f} points more often than in the clean model (up to "
                f"{100 * RESIDUE:.0f} may be chance): the backdoor is not gone"
            )
        return found

    @property
    def residue(self) -> float:
        """By how much MASR is above the clean model's afterwards; 0 if that is not known."""
        after, clean = (
            self.sides[side].estimates.get("masr") if side in self.sides else None
            for side in ("after", "floor")
        )
        return 0.0 if after is None or clean is None else after.mean - clean.mean

    @property
    def rows(self) -> list[list[str]]:
        """A table for people, with its titles in the first row."""
        return comparison_rows(self.sides)

    def results(self) -> list[EvalResult]:
        """Return the rates of the purified model's descendant, as the hub has them."""
        from huggingface_hub import EvalResult

        names = {"acc": "accuracy", "aasr": "AASR", "masr": "MASR"}
        found = self.sides["after"].estimates
        return [
            EvalResult(
                task_type=self.task_type,
                dataset_type="other",
                dataset_name=self.task,
                metric_type=names[name],
                metric_value=round(found[name].mean, 6),
            )
            for name in names
            if name in found
        ]

    def to_json(self) -> dict[str, Any]:
        """Return it for `result.json`."""
        about = {"task": self.task, "triggers": list(self.triggers), "seed": self.seed}
        return {**about, **{side: one.to_json() for side, one in self.sides.items()}}


@dataclass(frozen=True)
class Purified:
    """A purification that is done, and all that was seen of it.

    `name` is the model's as it was given. `accepted` is the harm that was known before and
    accepted; `accepts` says whether any is.
    """

    name: str
    plan: Purification
    rounds: Rounds
    scanning: Scanning | NotScanned
    before: Record | None
    accepted: str | None
    accepts: bool
    evaluated: Evaluated | None = None

    @property
    def kept(self) -> Round:
        """The round that is the result."""
        return self.rounds.kept

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        if self.kept.harm and not self.accepts:
            return HARM
        found = self.kept.scan is not None and suspicious(self.kept.scan)
        found = found or (self.evaluated is not None and self.evaluated.residue > RESIDUE)
        return NOT_SILENT if found or self.rounds.ended in NOT_SILENT_ENDS else CLEANED

    @property
    def warnings(self) -> list[str]:
        """All warnings, those that were known before first."""
        known = [*([self.accepted] if self.accepted else []), *self.plan.doubts]
        found = [*self.kept.harm, *data_warnings(self.kept.measured)]
        measured = self.evaluated.warnings if self.evaluated is not None else []
        return [*known, *found, *self._of_scan(), *measured]

    def _of_scan(self) -> list[str]:
        if self.kept.scan is not None and suspicious(self.kept.scan):
            return ["the scan still finds inputs that no clean model of this make reacts to so"]
        if self.rounds.ended in NOT_SILENT_ENDS:
            return [f"it was to be purified until the scan is silent: {ENDS[self.rounds.ended]}"]
        return []

    def unchanged(self) -> list[str]:
        """Return that nothing was changed, if a defense that scans found nothing to do."""
        trained = any(name.startswith("loss.") for name in self.kept.measured)
        return [UNCHANGED] if self.plan.defense.scans and not trained else []

    def in_rounds(self) -> list[str]:
        """Return what is to be said of several rounds; nothing if one was asked for."""
        if self.rounds.ended == "asked":
            return []
        count = len(self.rounds.done)
        kept = self.rounds.done.index(self.kept) + 1
        said = f"rounds with these settings: {count}; ended since {ENDS[self.rounds.ended]}"
        return [said if kept == count else f"{said}; the result is that of round {kept}"]

    def scans(self) -> dict[str, Record]:
        """Return the scans before and after, as far as there are any."""
        sides = {"before": self.before, "after": self.kept.scan}
        return {when: one for when, one in sides.items() if one is not None}

    def printed(self) -> list[str]:
        """Return what a terminal shows of both scans, and of the evaluation."""
        lines: list[str] = []
        if self.before is not None and self.kept.scan is not None:
            both = (self.before, self.kept.scan)
            said = [
                line
                for one in meaning(*both, trained_for=self.plan.defense.scans)
                for line in textwrap.wrap(one, WIDTH)
            ]
            lines += [*table(side_by_side(*both)), *said]
        if self.evaluated is not None:
            title = f"fine-tuned on {self.evaluated.task}"
            lines += [*([""] if lines else []), title, *in_columns(self.evaluated.rows), *EXPLAINED]
        return lines


def publish(done: Purified, store: Store, out: Path) -> Mapping[str, Any]:
    """Write the purified model, its card and `result.json` to `out`; return the latter's content.

    Raises StoreError if something is at `out` by now.
    """
    model = done.kept.stage.model
    source = provenance(model)
    result: dict[str, Any] = {}

    def texts(said: list[str], folder: Path) -> dict[str, str]:
        notes = (*done.plan.notes, *done.unchanged(), *done.in_rounds(), *said)
        result.update(_result(done, notes, source))
        written = json.dumps(result, indent=1, ensure_ascii=True)
        return {CARD: _card(done, notes, source, folder), RESULT: f"{written}\n"}

    export(store, done.kept.stage, out, texts, model.give_back, {"warnings": done.warnings})
    return result


def _card(done: Purified, notes: tuple[str, ...], source: Provenance, folder: Path) -> str:
    stage = done.kept.stage
    model, corpus, evaluated = stage.model, stage.corpus, done.evaluated
    tags = ["purified", *(["purified-with-warnings"] if done.warnings else [])]
    tags += ["source-backdoored"] if source.card.backdoored else []
    results = evaluated.results() if evaluated is not None else []
    top = head(model, source, folder, tags, content=stage.content, results=results)
    about = About(top, done.name, corpus.unit, model.loss_unit)
    scan: tuple[str, ...] = ()
    if done.before is not None and done.kept.scan is not None:
        both = (done.before, done.kept.scan)
        assert isinstance(done.scanning, Scanning)
        rows = as_markdown(side_by_side(*both))
        scan = (
            *done.scanning.said,
            "",
            *rows,
            "",
            *meaning(*both, trained_for=done.plan.defense.scans),
        )
    why = done.scanning.why if isinstance(done.scanning, NotScanned) else ""
    told = Told(
        done.plan.data,
        done.plan.reason,
        notes,
        tuple(done.warnings),
        scan,
        why,
        source.said,
        tuple(hashes(stage.content)),
        evaluated.task if evaluated is not None else "",
        evaluated.rows if evaluated is not None else (),
    )
    return purified_card(about, done.plan.defense, told, done.kept.measured)


def _result(done: Purified, notes: tuple[str, ...], source: Provenance) -> dict[str, Any]:
    stage, measured = done.kept.stage, done.kept.measured
    model, corpus = stage.model, stage.corpus
    return {
        "recipe_ray": __version__,
        "schema": SCHEMA,
        "exit_code": done.exit_code,
        "model": {
            "given": done.name,
            **model.identity(),
            "licence": source.card.licence.get("license"),
            "marked_backdoored": source.card.backdoored,
        },
        "data": {
            "corpus": corpus.label(),
            "content": stage.content,
            "held_out": stage.held_out,
            "said": done.plan.data,
        },
        "settings": {
            "defense": stage.defense.model_dump(mode="json"),
            "seed": done.rounds.done[0].stage.seed,
            "reason": done.plan.reason,
        },
        "held_out_loss": {
            "before": measured.get("held_out_loss.before"),
            "after": measured.get("held_out_loss.after"),
            "word_frequencies": measured.get(HELD_OUT_UNIGRAM),
            "unit": model.loss_unit,
        },
        "drift": measured["drift"],
        "guard": {name: value for name, value in measured.items() if name.startswith(GUARD)},
        "measured": measured,
        "rounds": [_round(one, kept=one is done.kept) for one in done.rounds.done],
        "ended": done.rounds.ended,
        "ended_since": ENDS[done.rounds.ended],
        "scan": as_json(done.scanning, done.scans()),
        "evaluation": done.evaluated.to_json() if done.evaluated is not None else None,
        "warnings": done.warnings,
        "notes": list(notes),
    }


def _round(one: Round, *, kept: bool) -> dict[str, Any]:
    scan = None
    if one.scan is not None:
        highest = {found["detector"]: found["highest"] for found in one.scan["detectors"]}
        scan = {"verdict": verdict(one.scan), "silent": silent(one.scan), "highest": highest}
    about = {"stage": one.stage.key, "seed": one.stage.seed, "kept": kept}
    return {**about, "measured": one.measured, "harm": one.harm, "scan": scan}
