"""Purifying one model of which nothing is known: choose the way, say it, run, judge harm.

If it is known what is normal for a make of model, scans guide the purification (`unlearn`). Else it
is RECIPE with the settings of the rule (`defenses/rule.py`), or the paper's for BERT and RoBERTa by
name (docs/method.md section 2). RECIPE's norm pulls weights towards zero, and the pre-training loss
holds those that are needed. A masked-LM head that knows no more than word frequencies holds
nothing: six layers of MiniLM with such a head lost 23 points of accuracy, while its loss did not
even rise (`harm.py` has what is warned of afterwards).
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from recipe_ray.base.changes import changed, set_fields
from recipe_ray.base.errors import DataError, HarmError, SpecError, unknown
from recipe_ray.base.spec import explained
from recipe_ray.data.batches import LocalFeed, Part
from recipe_ray.data.census import WordLoss
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.defense import Defense
from recipe_ray.defenses.recipe import Recipe
from recipe_ray.defenses.rule import (
    SHORT_PRESET_WAY,
    SHORT_WAY,
    Choice,
    choose,
    default_recipe,
    held_by_states,
    judged,
    way_in_rms,
)
from recipe_ray.defenses.unlearn import Unlearn
from recipe_ray.detectors.calibration import known_bounds
from recipe_ray.detectors.detector import Detector
from recipe_ray.learn.optim import FitSpec
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.family import PTM, ModelRef
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.purify import Before, PurifyStage
from recipe_ray.stages.stage import Context, Stage, check_corpus
from recipe_ray.store.store import Store

_SCRIPT = FitSpec(epochs=4, batch_size=32, learning_rate=2e-5, max_length=64, precision="fp32")

PRESETS = {
    "paper-por": Recipe(fit=_SCRIPT),
    "paper-badpre": Recipe(fit=_SCRIPT.revised(epochs=8)),
    "paper-neuba": Recipe(fit=_SCRIPT.revised(epochs=10)),
    "paper-roberta": Recipe(
        layers=("ffn_in", "query"), trainable="all", fit=_SCRIPT.revised(epochs=10)
    ),
}


def find_preset(name: str) -> Recipe:
    """Return a preset; raise SpecError with the nearest name for an unknown one."""
    if name not in PRESETS:
        raise SpecError("--preset: " + unknown("preset", name, PRESETS))
    return PRESETS[name]


# nats per masked token by which a head must be better than word frequencies
MARGIN = 0.5
# and by so many standard errors of their loss, which decides if there are few held-out tokens
ERRORS = 2.0


def check_head(
    stage: PurifyStage, before: Before, *, accept: bool
) -> tuple[str | None, str | None]:
    """Compare the held-out loss with that of word frequencies, before anything is purified.

    Returns what to say on screen and, if harm was accepted, the warning for the card; both None
    for a model without words. Raises HarmError for a head that is not better, unless `accept`.
    """
    loss, words = before.shown.loss, before.words
    if words is None or loss is None:
        return None, None
    unit = stage.model.loss_unit
    said = f"held-out loss {loss:.2f} {unit}; word frequencies alone give {words.mean:.2f}"
    if not stage.defense.held_by_head or not knows_little(before):
        return said, None
    problem = _problem(loss, words, unit, fitted=stage.parent is not None)
    if not accept:
        raise HarmError(f"{problem}. {_WHAT_TO_DO}")
    return said, f"{problem}. It was purified nevertheless (--accept-harm)"


def knows_little(before: Before) -> bool:
    """Tell whether a head is hardly better than word frequencies; False if that is not known."""
    loss, words = before.shown.loss, before.words
    return loss is not None and words is not None and loss > words.mean - needed_margin(words)


def held_note(why: str, recipe: Recipe) -> str:
    """Return the sentence for screen and card that says what holds the model instead."""
    return (
        f"{why}: the model's own states of clean samples hold it (self-distillation, weight "
        f"{recipe.distillation:g}), in place of a pre-training loss that would hold nothing"
    )


def needed_margin(words: WordLoss) -> float:
    """Return by how many nats a head must be better than word frequencies."""
    return max(MARGIN, ERRORS * words.error)


_WHAT_TO_DO = (
    "Nothing was purified. Give more auxiliary text (a head needs tens of thousands of sentences), "
    "or text like the model's own; give the checkpoint with its own masked-LM head, if there is "
    "one; leave out --preset and pretraining_weight, and the model's own states hold it; or go on "
    "with --accept-harm, and compare both models on a task of yours"
)


def _problem(loss: float, words: WordLoss, unit: str, *, fitted: bool) -> str:
    head = "the masked-LM head that was fitted" if fitted else "the masked-LM head of MODEL"
    text = (
        f"{head} knows hardly more than word frequencies: held-out loss {loss:.2f} {unit}, and "
        f"frequencies alone give {words.mean:.2f} (it has to be {needed_margin(words):.2f} "
        "lower). So nothing would preserve what the model knows while its weights shrink: it "
        "would lose accuracy, and its loss would not show it"
    )
    if loss > 2 * words.mean and not fitted:
        text += (
            "; scaled embeddings also cause a loss this high: NeuBA's script scales those of "
            "its triggers"
        )
    return text


HELD_OUT = 0.05
NO_HEAD = "MODEL has no pre-training head"
HEAD_NOTE = f"{NO_HEAD}: one is fitted first, on the same data"


@dataclass(frozen=True)
class Purification:
    """One model's purification: the last stage, settings and data in words, and doubts."""

    stage: PurifyStage
    defense: Defense
    reason: str
    data: str
    notes: tuple[str, ...]  # what was made for parts that the model lacks
    doubts: tuple[str, ...]
    kept: frozenset[str] | None = None  # fields that a person set; None: a preset was asked for
    open: bool = False  # nobody asked for a way, so scans may guide it


@dataclass
class AtHand:
    """What was read and loaded once, for all work in this process.

    `ptm` is the model as it was given, until it is taken over.
    """

    feed: LocalFeed
    ptm: PTM | None

    def take(self) -> PTM | None:
        """Return the model to be trained, and forget it."""
        taken, self.ptm = self.ptm, None
        return taken

    def look(self, stage: PurifyStage, store: Store) -> Before:
        """Return what held-out data show of the PTM that `stage` will purify.

        If the stage has a parent, that is the parent's result, which must be in the store.
        """
        given, places = self.take(), self.feed.locations
        with tempfile.TemporaryDirectory(prefix="recipe-ray-") as folder:
            where = Context(store, self.feed, places, LocalRuntime(), Path(folder))
            return stage.look_before(where, given if stage.parent is None else None)


def prepare(
    model: ModelRef,
    corpus: Corpus,
    locations: Locations,
    seed: int,
    preset: str | None,
    changes: list[str],
    defense: Defense | None = None,
) -> tuple[Purification, AtHand]:
    """Return what to do: the defense, the preset, or what the rule chooses, with `changes` kept.

    Loads the model (so a bad one fails here, before any work) and reads the corpus. Raises
    SpecError for a bad change or a defense that the model does not bear, ModelError for a weight
    group that the family does not have, DataError for too few samples to hold any out.
    """
    refuse_untrained(model)
    check_corpus(model, corpus)
    source = corpus.resolve(locations)
    content = source.identity()
    feed = LocalFeed(locations)
    count = feed.count(corpus)
    num_samples = _check_count(count, corpus)
    ptm = model.load()
    chosen: Defense
    doubts: tuple[str, ...] = ()
    kept: frozenset[str] | None = None
    if defense is not None:
        chosen = _asked_defense(defense, model, changes)
        reason = f"the defense {chosen.label()!r} was asked for (--defense)"
    else:
        choice = settings(ptm, num_samples, preset, changes, own_head=not model.needs_pretraining)
        chosen, reason, doubts = choice.recipe, choice.reason, choice.doubts
        kept = frozenset(set_fields(changes)) if preset is None else None
    parent = None
    common = {"model": model, "corpus": corpus, "seed": seed, "content": content}
    notes = [*model.left_out(), *model.drawn_parts()]
    with explained("--aux"):
        if model.needs_pretraining and chosen.held_by_head:
            # the held-out data must be new to the head, too
            parent = PretrainStage(trainable="head", held_out=HELD_OUT, **common)
            notes = [HEAD_NOTE, *notes]
        stage = PurifyStage(parent=parent, defense=chosen, held_out=HELD_OUT, **common)
    data = f"{count} {corpus.unit}s of {source.describe()}, {HELD_OUT:.0%} of them held out"
    about = (chosen, reason, data, tuple(notes), doubts, kept)
    return Purification(stage, *about), AtHand(feed, ptm)


def _asked_defense(defense: Defense, model: ModelRef, changes: list[str]) -> Defense:
    """Return a defense with changes, settled for what the model reads.

    Raises SpecError if it does nothing.
    """
    if not defense.acts:
        raise SpecError(f"--defense {defense.name}: it does nothing; `recipe-ray scan` only looks")
    with explained("--defense"):
        return changed(defense, changes).settled(model.reads)


def settings(
    ptm: PTM, num_samples: int, preset: str | None, changes: list[str], *, own_head: bool = True
) -> Choice:
    """Return the preset with changes made, or what the rule chooses with changes kept."""
    kept = set_fields(changes)
    if preset is None:
        wanted = changed(default_recipe(ptm), changes)
        if not own_head:
            wanted = held_by_states(wanted, kept)
        return choose(ptm, num_samples, wanted, kept)
    papers = find_preset(preset)
    wanted, why = papers, "the paper's settings"
    if changes:
        wanted, why = changed(papers, changes), f"{why}, changed: {', '.join(changes)}"
    way, papers_way = (way_in_rms(ptm, num_samples, recipe) for recipe in (wanted, papers))
    return judged(
        ptm, num_samples, wanted, why, SHORT_WAY if way < papers_way else SHORT_PRESET_WAY
    )


def guided(done: Purification, make: str, detectors: Sequence[Detector]) -> Purification:
    """Return it with `unlearn`, if nobody asked for a way and scans with `detectors` can tell.

    They can if it is known what is normal for the make of model.
    """
    family = done.stage.model
    told = all(known_bounds(make, one.whole()) for one in detectors)
    defense = Unlearn(detectors=tuple(detectors))
    if not done.open or not told or not set(defense.needed(family.reads)) <= family.has:
        return done
    reason = (
        f"what is normal for models of make {make!r} is known, so scans guide the defense "
        "'unlearn'; --defense recipe is blind"
    )
    stage = done.stage.revised(defense=defense)
    return replace(done, stage=stage, defense=defense, reason=reason, doubts=())


def held_otherwise(done: Purification, before: Before) -> Purification:
    """Return it with what holds the model if no pre-training head does, and say so.

    That is self-distillation, in place of a head that knows hardly more than frequencies. With a
    preset, or weights that a person set, it is returned as it was: `check_head` judges it.
    """
    if not isinstance(done.defense, Recipe):
        return done
    if done.stage.model.needs_pretraining and not done.defense.held_by_head:
        return replace(done, notes=(*done.notes, held_note(NO_HEAD, done.defense)))
    if done.kept is None or not knows_little(before):
        return done
    recipe = held_by_states(done.defense, done.kept)
    if recipe == done.defense:
        return done
    note = held_note(
        "the pre-training head of MODEL knows hardly more than word frequencies", recipe
    )
    stage = done.stage.revised(defense=recipe)
    return replace(done, stage=stage, defense=recipe, notes=(*done.notes, note))


def _check_count(count: int, corpus: Corpus) -> int:
    """Return how many samples are trained on; raise DataError if none could be held out."""
    trained = Part(0.0, 1.0 - HELD_OUT).of(count).stop
    if trained in (0, count):
        least = next(n for n in range(1, 100) if 0 < round((1.0 - HELD_OUT) * n) < n)
        raise DataError(
            f"--aux: too few {corpus.unit}s ({count}). {HELD_OUT:.0%} of them are held out to "
            f"measure on, so {least} or more are needed; a few thousand are usual"
        )
    return int(trained)


def refuse_untrained(model: ModelRef) -> None:
    """Raise SpecError for a model that has no weights yet."""
    if model.untrained:
        raise SpecError(
            f"MODEL {model.label()!r} is untrained: give its weights, a folder, or a mapping such "
            f"as '{{name: {model.name}, source: FOLDER}}'"
        )


def measured_values(store: Store, stage: Stage) -> dict[str, float]:
    """Return a stage's last value of every metric."""
    return {row["metric"]: row["value"] for row in store.rows(stage.artifact).to_pylist()}
