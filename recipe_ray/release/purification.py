"""Purifying one model of which nothing is known: choose the settings, say them, run, judge."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from recipe_ray.base.errors import SpecError
from recipe_ray.base.spec import explained
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.recipe import Recipe
from recipe_ray.defenses.rule import ALLOWED_LOSS_RISE, choose
from recipe_ray.models.family import ModelRef
from recipe_ray.release.card import About, purified_card
from recipe_ray.release.export import export
from recipe_ray.release.request import changed
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Stage, check_corpus
from recipe_ray.stages.store import Store

HELD_OUT = 0.05
HEAD_NOTE = "its missing pre-training head is fitted first, on the same data"


@dataclass(frozen=True)
class Purification:
    """One model's purification: the last stage, the settings in words, where the data come from."""

    stage: PurifyStage
    recipe: Recipe
    reason: str
    data: str


def prepare(
    model: ModelRef,
    corpus: Corpus,
    locations: Locations,
    seed: int,
    preset: Recipe | None,
    changes: list[str],
) -> Purification:
    """Return what is to be done: the preset, else what the rule chooses, with `changes` made.

    Loads the model (so a bad one fails here, before any work) and counts the corpus. Raises
    SpecError for a bad change, ModelError for a weight group that the family does not have.
    """
    refuse_untrained(model)
    check_corpus(model, corpus)
    source = corpus.resolve(locations)
    content = source.identity()
    count = sum(1 for _ in islice(corpus.samples(locations), corpus.size))
    ptm = model.load()
    if preset is not None:
        recipe, reason = preset, "the paper's settings"
    else:
        choice = choose(ptm, round(count * (1 - HELD_OUT)), *ptm.purification_scope)
        recipe, reason = choice.recipe, choice.reason
    if changes:
        recipe, reason = changed(recipe, changes), f"{reason}; changed: {', '.join(changes)}"
    for group in recipe.layers:
        ptm.weight_group(group)
    parent = None
    common = {"model": model, "corpus": corpus, "seed": seed, "content": content}
    with explained("--aux"):
        if model.needs_pretraining:
            parent = PretrainStage(trainable="head", **common)
            reason = f"{reason}; {HEAD_NOTE}"
        stage = PurifyStage(parent=parent, defense=recipe, held_out=HELD_OUT, **common)
    data = f"{count} {corpus.unit}s of {source.describe()}, {HELD_OUT:.0%} of them held out"
    return Purification(stage, recipe, reason, data)


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


def finish(done: Purification, store: Store, out: Path, name: str) -> list[str]:
    """Write the purified model and its card to `out`; return warnings for the maintainer."""
    measured = measured_values(store, done.stage)
    model = done.stage.model
    about = About(name, model.opens_with, done.stage.corpus.unit, model.loss_unit)
    card = purified_card(about, done.recipe, done.data, done.reason, measured)
    warnings = loss_warnings(measured, model.loss_unit)
    if warnings:
        card += "\n## Warnings\n\n" + "\n".join(f"- {warning}" for warning in warnings) + "\n"
    export(store, done.stage, out, card)
    return warnings


def loss_warnings(measured: dict[str, float], unit: str) -> list[str]:
    """Return a warning where the held-out loss rose by more than the rule allows."""
    rise = measured["held_out_loss.after"] - measured["held_out_loss.before"]
    if rise <= ALLOWED_LOSS_RISE:
        return []
    return [
        f"the held-out pre-training loss rose by {rise:.2f} {unit}, more than the "
        f"{ALLOWED_LOSS_RISE} the rule allows: the model is probably damaged; try a lower "
        "fit.learning_rate, fewer fit.steps or a lower weight_factor (--set)"
    ]
