"""The rule by which `recipe-ray purify` chooses RECIPE's settings for a model it knows nothing of.

Under Adam the norm term moves every penalised weight by about the learning rate per step, whatever
the weight factor (docs/method.md section 3). So the whole way that a weight can go decides: the
sum of the learning rates over the steps, against the weights' size (root mean square, RMS):

    way = learning_rate x steps / 2          (linear schedule to zero)
    way = TRAVEL x RMS                       (the rule)

The paper's own settings for BERT come to 0.6 RMS (POR, 4 epochs) up to 1.5 RMS (NeuBA, 10 epochs).
The steps are one pass over the data, but at least MIN_STEPS; the learning rate follows, within
[MIN_RATE, MAX_RATE]. If MAX_RATE would be exceeded, there are more steps. What a person sets is
kept, and the rest is chosen so that the way is the rule's.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recipe_ray.base.errors import ModelError, SpecError
from recipe_ray.defenses.recipe import Recipe
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import PTM

if TYPE_CHECKING:
    from torch import Tensor

TRAVEL = 1.4
MIN_STEPS = 600
MIN_RATE, MAX_RATE = 1e-6, 2e-4
# a held-out loss that rises by more than this (nats per masked token or image) says that the
# model is being damaged
ALLOWED_LOSS_RISE = 0.5
# about ten times what normal weights need at MAX_RATE (RMS 0.02 to 0.1). What is above this
# is a few huge weights: an attacker may leave them so that purifying takes for ever
MAX_STEPS = 20_000
# ways in RMS below which people are warned. At 0.86 RMS a backdoor of POR stayed (docs/purify.md);
# half of the rule's way is below all that cleaned anything there
SHORT_WAY = TRAVEL / 2
# the paper's settings are 0.6 RMS and more on its own data; half of that is another method
SHORT_PRESET_WAY = 0.3
# the smallest factor that cleaned anything in the studies (CLIP); at 0.1 BERT's backdoors stay
LEAST_FACTOR = 0.1
# weight of self-distillation if no pre-training loss holds the model. In a trial on six layers of
# MiniLM (docs/purify.md) 100 cost 3 points of ACC, 1000 none, and no weight at all 23
DISTILLATION = 100.0
HALF = 0.5  # of the learning rate, reached if epsilon is a weight's gradient


@dataclass(frozen=True)
class Choice:
    """The settings chosen, the sentence that says why, and what is doubtful about them."""

    recipe: Recipe
    reason: str
    doubts: tuple[str, ...] = ()


def choose(
    ptm: PTM, num_samples: int, wanted: Recipe | None = None, kept: Collection[str] = ()
) -> Choice:
    """Return RECIPE's settings for a PTM and `num_samples` auxiliary samples.

    The fields of `wanted` that `kept` names (`fit.steps`, `layers`) were set by a person and stay;
    of the others learning rate and steps are chosen. Raises ModelError for a model whose penalised
    weights are all zero, not finite, or so large that it would take over MAX_STEPS; SpecError for
    a learning rate at which it would.
    """
    base = wanted if wanted is not None else default_recipe(ptm)
    size = _sane_rms(ptm, base.layers)
    steps_per_epoch = math.ceil(num_samples / base.fit.batch_size)
    way = TRAVEL * size
    if base.fit.optimizer != "adamw":
        return judged(ptm, num_samples, base, "settings as given", SHORT_WAY)
    if "fit.steps" in kept or "fit.epochs" in kept:
        fit = base.fit
        if "fit.learning_rate" not in kept:
            per_rate = _way_at(fit.revised(learning_rate=1.0), fit.num_steps(steps_per_epoch))
            fit = _with_rate(fit, min(way / per_rate, MAX_RATE) if per_rate else MAX_RATE)
    elif "fit.learning_rate" in kept:
        fit = _with_steps(base, math.ceil(way / _way_at(base.fit, 1_000_000) * 1_000_000))
    else:
        fit = _with_both(ptm, base, steps_per_epoch, way)
    set_ = sorted(name for name in kept if name in ("fit.steps", "fit.epochs", "fit.learning_rate"))
    why = f"the way a weight can go is to be {TRAVEL} x RMS = {way:.4f}"
    if set_:
        names = " and ".join(name.removeprefix("fit.") for name in set_)
        why = f"the rule asks for a way of {TRAVEL} x RMS = {way:.4f}; with {names} as set by you"
    return judged(ptm, num_samples, base.revised(fit=fit), why, SHORT_WAY)


def default_recipe(ptm: PTM) -> Recipe:
    """Return RECIPE with the weight groups and the trainable set that the family asks for."""
    layers, trainable = ptm.purification_scope
    return Recipe(layers=layers, trainable=trainable)


def held_by_states(recipe: Recipe, kept: Collection[str]) -> Recipe:
    """Return RECIPE with self-distillation in place of a pre-training loss that holds nothing.

    A person who set the weight of one of the two (named in `kept`) decides: then as it was.
    """
    refused = "distillation" in kept and recipe.distillation == 0
    if "pretraining_weight" in kept or refused:
        return recipe
    weight = recipe.distillation or DISTILLATION
    return recipe.revised(pretraining_weight=0.0, distillation=weight)


def judged(ptm: PTM, num_samples: int, recipe: Recipe, why: str, least: float) -> Choice:
    """Return settings with the way they come to, and doubts if it is under `least` RMS.

    Raises SpecError for settings that take no step at all.
    """
    fit, size = recipe.fit, weight_rms(ptm, recipe.layers)
    steps = fit.num_steps(math.ceil(num_samples / fit.batch_size))
    if steps == 0:
        raise SpecError("fit.epochs is 0, which purifies nothing; set it above 0, or fit.steps")
    way = _way_at(fit, steps)
    formula = "learning rate x steps / 2" if fit.schedule == "linear" else "learning rate x steps"
    what = "only these weights train" if recipe.trainable == "weights" else "all parameters train"
    moved = _share_of_rate(ptm, recipe)
    multiple = moved * way / size if size else math.inf
    comes_to = f"{formula} is {multiple:.2g} x RMS"
    if fit.optimizer != "adamw":
        comes_to = f"with {fit.optimizer} the rule, which is about AdamW, says nothing of the way"
    reason = (
        f"weights of {', '.join(recipe.layers)} have RMS {size:.4f}; {why}: {steps} steps of "
        f"{fit.batch_size} at {fit.learning_rate:g}, {comes_to}; {what}"
    )
    doubts = [*_doubts(recipe, multiple, least, moved), *_left_out(ptm, recipe)]
    return Choice(recipe, reason, tuple(doubts))


def _left_out(ptm: PTM, recipe: Recipe) -> list[str]:
    asked = default_recipe(ptm).layers
    spared = [group for group in asked if group not in recipe.layers]
    if not spared:
        return []
    return [
        f"layers leaves out {', '.join(spared)}: for this model the rule penalises "
        f"{', '.join(asked)}; what a backdoor has in the weights left out stays (docs/purify.md "
        "says what leaving out cost in the studies)"
    ]


def _doubts(recipe: Recipe, multiple: float, least: float, moved: float) -> list[str]:
    found = []
    if recipe.fit.optimizer != "adamw":
        found.append(
            f"fit.optimizer is {recipe.fit.optimizer}: how far the weights go is not known, so a "
            "backdoor may well be left; the rule and the paper use adamw"
        )
    elif multiple < least:
        held = (
            "fit.epsilon is so large, or fit.clip_norm so small, that AdamW hardly moves them; "
            "leave both as they are"
        )
        short = "set more fit.steps (or fit.epochs), or leave steps and learning rate to the rule"
        found.append(
            f"these settings can move a weight by {multiple:.2g} x RMS, under half of the "
            f"{2 * least:.2g} x RMS that they should: a backdoor is probably left; "
            f"{held if moved < HALF else short}"
        )
    if recipe.weight_factor < LEAST_FACTOR:
        found.append(
            f"weight_factor is {recipe.weight_factor:g}, below the least that cleaned anything in "
            f"the studies ({LEAST_FACTOR}): little or nothing pulls the weights towards zero, so a "
            "backdoor is probably left"
        )
    return found


def _share_of_rate(ptm: PTM, recipe: Recipe) -> float:
    """Return by which share of the learning rate AdamW moves a weight: g / (g + epsilon).

    g is a weight's gradient if that of the whole loss has norm 1, a norm's own, or what it is
    clipped to.
    """
    fit = recipe.fit
    if fit.optimizer != "adamw":
        return 1.0
    norm = min(1.0, fit.clip_norm if fit.clip_norm is not None else 1.0)
    gradient = norm / math.sqrt(sum(weight.numel() for weight in _weights(ptm, recipe.layers)))
    return gradient / (gradient + fit.epsilon)


def way_in_rms(ptm: PTM, num_samples: int, recipe: Recipe) -> float:
    """Return how far a weight can go under these settings, in RMS of the penalised weights."""
    steps = recipe.fit.num_steps(math.ceil(num_samples / recipe.fit.batch_size))
    return _way_at(recipe.fit, steps) / weight_rms(ptm, recipe.layers)


def _way_at(fit: FitSpec, steps: int) -> float:
    """Return the sum of the learning rates over the steps (`optim.rate_at`), to half a step."""
    warmup = round(fit.warmup_share * steps)
    rest = steps - warmup
    return fit.learning_rate * (warmup / 2 + (rest / 2 if fit.schedule == "linear" else rest))


def _with_both(ptm: PTM, base: Recipe, steps_per_epoch: int, way: float) -> FitSpec:
    steps = max(steps_per_epoch, MIN_STEPS)
    per_rate = _way_at(base.fit.revised(learning_rate=1.0), steps) / steps
    rate = min(max(way / (per_rate * steps), MIN_RATE), MAX_RATE)
    stretched = math.ceil(way / (per_rate * rate))
    if stretched > max(steps, MAX_STEPS):
        raise ModelError(_too_large(ptm, base.layers, stretched))
    return _with_rate(base.fit.revised(steps=max(steps, stretched)), rate)


def _with_rate(fit: FitSpec, rate: float) -> FitSpec:
    return fit.revised(learning_rate=float(f"{rate:.2g}"))


def _with_steps(base: Recipe, steps: int) -> FitSpec:
    if steps > MAX_STEPS:
        raise SpecError(
            f"--set fit.learning_rate={base.fit.learning_rate:g}: the rule would take {steps:,} "
            f"steps, more than {MAX_STEPS:,}; set a higher rate, or fit.steps as well"
        )
    return base.fit.revised(steps=steps)


def _sane_rms(ptm: PTM, layers: tuple[str, ...]) -> float:
    size = weight_rms(ptm, layers)
    if size == 0:
        raise ModelError(f"all weights of {', '.join(layers)} are zero: nothing to purify")
    if not math.isfinite(size):
        raise ModelError(f"weights of {', '.join(layers)} are not finite: nothing to purify")
    return size


def _too_large(ptm: PTM, layers: tuple[str, ...], steps: int) -> str:
    largest = max(float(tensor.abs().max()) for tensor in _weights(ptm, layers))
    return (
        f"weights of {', '.join(layers)} are so large (up to {largest:.3g}) that purifying would "
        f"take {steps:,} steps, more than {MAX_STEPS:,}; look at the model, clip such weights, or "
        "choose the settings yourself with --preset and --set"
    )


def weight_rms(ptm: PTM, layers: tuple[str, ...]) -> float:
    """Return the root mean square over all weights of the groups."""
    import torch

    weights = _weights(ptm, layers)
    squares = torch.stack([weight.float().square().sum() for weight in weights]).sum()
    return math.sqrt(float(squares) / sum(weight.numel() for weight in weights))


def _weights(ptm: PTM, layers: tuple[str, ...]) -> list[Tensor]:
    from recipe_ray.learn.objective import tensor_of

    return [tensor_of(one).detach() for group in layers for one in ptm.weight_group(group)]
