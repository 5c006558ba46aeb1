"""The rule by which `recipe-ray purify` chooses RECIPE's settings for a model it knows nothing of.

Under Adam the norm term moves every penalised weight by about the learning rate a step, whatever
the weight factor (docs/method.md section 3), so what decides is the whole way a weight can go, the
sum of the learning rates over the steps, against the weights' size (root mean square, RMS):

    way = learning_rate x steps / 2          (linear schedule to zero)
    way = TRAVEL x RMS                       (the rule)

The paper's own settings for BERT come to 0.6 RMS (POR, 4 epochs) up to 1.5 RMS (NeuBA, 10 epochs).
The steps are one pass over the data, but at least MIN_STEPS; the learning rate follows, within
[MIN_RATE, MAX_RATE], and the steps are stretched where MAX_RATE would be exceeded.
"""

import math
from dataclasses import dataclass

import torch

from recipe_ray.base.errors import ModelError
from recipe_ray.defenses.recipe import Recipe
from recipe_ray.learn.weights import tensor_of
from recipe_ray.models.family import PTM, Scope

TRAVEL = 1.4
MIN_STEPS = 600
MIN_RATE, MAX_RATE = 1e-6, 2e-4
# a held-out loss that rises by more than this (nats a masked token, or an image) says that the
# model is being damaged
ALLOWED_LOSS_RISE = 0.5
# some ten times what a sane model's weights ask for at MAX_RATE (RMS 0.02 to 0.1): what lies above
# is a few huge weights, as an attacker may leave them so that purifying takes for ever
MAX_STEPS = 20_000


@dataclass(frozen=True)
class Choice:
    """The settings chosen, and the sentence that says why."""

    recipe: Recipe
    reason: str


def choose(ptm: PTM, num_samples: int, layers: tuple[str, ...], trainable: Scope) -> Choice:
    """Return RECIPE's settings for a PTM and `num_samples` auxiliary samples.

    Raises ModelError for a model whose penalised weights are all zero, not finite, or so large that
    it would take over MAX_STEPS.
    """
    size = weight_rms(ptm, layers)
    if size == 0:
        raise ModelError(f"all weights of {', '.join(layers)} are zero: nothing to purify")
    if not math.isfinite(size):
        raise ModelError(f"weights of {', '.join(layers)} are not finite: nothing to purify")
    base = Recipe(layers=layers, trainable=trainable)
    steps = max(math.ceil(num_samples / base.fit.batch_size), MIN_STEPS)
    way = TRAVEL * size
    rate = min(max(2 * way / steps, MIN_RATE), MAX_RATE)
    stretched = math.ceil(2 * way / rate)
    if stretched > max(steps, MAX_STEPS):
        raise ModelError(_too_large(ptm, layers, stretched))
    steps = max(steps, stretched)
    fit = base.fit.revised(steps=steps, learning_rate=float(f"{rate:.2g}"))
    reason = (
        f"weights of {', '.join(layers)} have RMS {size:.4f}; learning rate x steps / 2 is to be "
        f"{TRAVEL} x RMS = {way:.4f}: {steps} steps of {fit.batch_size} at {fit.learning_rate:g}, "
        f"{'only these weights train' if trainable == 'weights' else 'all parameters train'}"
    )
    return Choice(base.revised(fit=fit), reason)


def _too_large(ptm: PTM, layers: tuple[str, ...], steps: int) -> str:
    tensors = [tensor_of(one).detach() for group in layers for one in ptm.weight_group(group)]
    largest = max(float(tensor.abs().max()) for tensor in tensors)
    return (
        f"weights of {', '.join(layers)} are so large (up to {largest:.3g}) that purifying would "
        f"take {steps:,} steps, more than {MAX_STEPS:,}; look at the model, clip such weights, or "
        "choose the settings yourself with --preset and --set"
    )


def weight_rms(ptm: PTM, layers: tuple[str, ...]) -> float:
    """Return the root mean square over all weights of the groups."""
    weights = [tensor_of(one).detach() for group in layers for one in ptm.weight_group(group)]
    squares = torch.stack([weight.float().square().sum() for weight in weights]).sum()
    return math.sqrt(float(squares) / sum(weight.numel() for weight in weights))
