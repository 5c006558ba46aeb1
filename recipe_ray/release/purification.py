"""Purifying one model of which nothing is known: choose the settings, say them, run, judge."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from recipe_ray.base.errors import DataError, SpecError
from recipe_ray.base.spec import explained
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.feed import Part
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.recipe import Recipe
from recipe_ray.defenses.rule import (
    SHORT_PRESET_WAY,
    SHORT_WAY,
    Choice,
    choose,
    default_recipe,
    judged,
    way_in_rms,
)
from recipe_ray.models.family import PTM, ModelRef
from recipe_ray.release.card import About, Told, purified_card
from recipe_ray.release.export import export
from recipe_ray.release.harm import after_warnings
from recipe_ray.release.presets import preset as find_preset
from recipe_ray.release.request import changed, set_fields
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Stage, check_corpus
from recipe_ray.stages.store import Store

HELD_OUT = 0.05
HEAD_NOTE = "MODEL has no pre-training head: one is fitted first, on the same data"


@dataclass(frozen=True)
class Purification:
    """One model's purification: the last stage, settings and data in words, what is doubtful."""

    stage: PurifyStage
    recipe: Recipe
    reason: str
    data: str
    notes: tuple[str, ...]  # what was made up for what the model lacks
    doubts: tuple[str, ...]


def prepare(
    model: ModelRef,
    corpus: Corpus,
    locations: Locations,
    seed: int,
    preset: str | None,
    changes: list[str],
) -> Purification:
    """Return what is to be done: the preset, else what the rule chooses, with `changes` kept.

    Loads the model (so a bad one fails here, before any work) and counts the corpus. Raises
    SpecError for a bad change, ModelError for a weight group that the family does not have,
    DataError for too few samples to hold any out.
    """
    refuse_untrained(model)
    check_corpus(model, corpus)
    source = corpus.resolve(locations)
    content = source.identity()
    count = sum(1 for _ in islice(corpus.samples(locations), corpus.size))
    num_samples = _check_count(count, corpus)
    ptm = model.load()
    choice = settings(ptm, num_samples, preset, changes)
    parent = None
    common = {"model": model, "corpus": corpus, "seed": seed, "content": content}
    notes = model.drawn_parts()
    with explained("--aux"):
        if model.needs_pretraining:
            # what is measured on must be new to the head, too
            parent = PretrainStage(trainable="head", held_out=HELD_OUT, **common)
            notes = [HEAD_NOTE, *notes]
        stage = PurifyStage(parent=parent, defense=choice.recipe, held_out=HELD_OUT, **common)
    data = f"{count} {corpus.unit}s of {source.describe()}, {HELD_OUT:.0%} of them held out"
    about = (choice.recipe, choice.reason, data)
    return Purification(stage, *about, tuple(notes), choice.doubts)


def settings(ptm: PTM, num_samples: int, preset: str | None, changes: list[str]) -> Choice:
    """Return the preset with changes made, or what the rule chooses with changes kept."""
    kept = set_fields(changes)
    if preset is None:
        wanted = changed(default_recipe(ptm), changes)
        return choose(ptm, num_samples, wanted, kept)
    papers = find_preset(preset)
    wanted, why = papers, "the paper's settings"
    if changes:
        wanted, why = changed(papers, changes), f"{why}, changed: {', '.join(changes)}"
    way, papers_way = (way_in_rms(ptm, num_samples, recipe) for recipe in (wanted, papers))
    return judged(
        ptm, num_samples, wanted, why, SHORT_WAY if way < papers_way else SHORT_PRESET_WAY
    )


def _check_count(count: int, corpus: Corpus) -> int:
    """Return how many samples are trained on; raise DataError where none could be held out."""
    trained = Part(0.0, 1.0 - HELD_OUT).of(count).stop
    if trained in (0, count):
        least = next(n for n in range(1, 100) if 0 < round((1.0 - HELD_OUT) * n) < n)
        raise DataError(
            f"--aux: too few {corpus.unit}s, {count}: {HELD_OUT:.0%} are held out to be measured "
            f"on, which takes {least} or more; a few thousand are usual"
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


def finish(
    done: Purification, store: Store, out: Path, name: str, accepted: str | None
) -> tuple[list[str], list[str]]:
    """Write the purified model and its card to `out`; return notes and warnings for people.

    `accepted` is the harm that was known of before, and accepted.
    """
    measured = measured_values(store, done.stage)
    model = done.stage.model
    warnings = [*([accepted] if accepted else []), *done.doubts]
    warnings += after_warnings(measured, model.loss_unit, model.reads)
    notes = list(done.notes)

    def card(said: list[str]) -> str:
        about = About(name, model.opens_with, done.stage.corpus.unit, model.loss_unit)
        told = Told(done.data, done.reason, (*notes, *said), tuple(warnings))
        return purified_card(about, done.recipe, told, measured)

    given_back = export(store, done.stage, out, card, model.give_back, {"warnings": warnings})
    return [*given_back], warnings
