"""Warnings about what a purification did to a model, told from held-out data without labels.

`studied_harm.json` says which measure foretells lost accuracy, and from which value on people are
warned; `BY_HAND` adds what that study does not cover yet. `python -m benchmarks.harm` makes the
file from the rows of experiments/mini/guard.yaml.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from recipe_ray.defenses.rule import ALLOWED_LOSS_RISE
from recipe_ray.stages.learnable import FEW_USABLE, USABLE_SHARE

FILE = "studied_harm.json"
# by hand, from the one purified backdoored PTM whose loss was known then: 23 points at 0.22.
# The study has clean PTMs so far; a backdoor lowers the effective rank that its removal restores
BY_HAND: Mapping[str, Mapping[str, Any]] = {
    "text": {
        "measure": "drift",
        "bound": 0.1,
        "meaning": "half of a drift that is known to have cost 23 points of accuracy",
    }
}
Measured = Mapping[str, float]
_GENTLER = (
    "`--defense unlearn` moves the model less, as do a lower fit.learning_rate, fewer fit.steps or "
    "a lower weight_factor (--set)"
)


@dataclass(frozen=True)
class Measure:
    """A measure of harm in words, and its value from a stage's metrics: higher is worse."""

    said: str
    value: Callable[[Measured], float]


MEASURES = {
    "drift": Measure("the drift of clean representations", lambda of: of["drift"]),
    "neighbours_lost": Measure(
        "the share of nearest neighbours that samples lost",
        lambda of: 1 - of["guard.neighbours_kept"],
    ),
    "unpredictability": Measure(
        "the share of the old features' variance that the new ones do not tell (1 - R^2)",
        lambda of: 1 - of["guard.predictability"],
    ),
    "rank_lost": Measure(
        "the share of the features' effective rank that was lost",
        lambda of: 1 - of["guard.effective_rank.after"] / of["guard.effective_rank.before"],
    ),
    "loss_rise": Measure(
        "the rise of the held-out pre-training loss",
        lambda of: of["held_out_loss.after"] - of["held_out_loss.before"],
    ),
}


def measures(measured: Measured) -> dict[str, float]:
    """Return every measure of harm that a stage's metrics allow."""
    found = {}
    for name, one in MEASURES.items():
        try:
            found[name] = one.value(measured)
        except KeyError:
            continue  # too few samples were held out for it, or there is no head
    return found


@cache
def studied(reads: str) -> Mapping[str, Any] | None:
    """Return which measure to warn by, and from where on, for models of `text` or `image`."""
    data: dict[str, Any] = json.loads((files("recipe_ray.api") / FILE).read_text())
    known: Mapping[str, Any] | None = data.get(reads)
    return known


def harm_warnings(measured: Measured, unit: str, reads: str) -> list[str]:
    """Return warnings that accuracy was probably lost; `unit` is that of the pre-training loss."""
    found, known = [], studied(reads)
    now = measures(measured)
    rise = now.get("loss_rise", 0.0)
    if rise > ALLOWED_LOSS_RISE:
        found.append(
            f"the held-out pre-training loss rose by {rise:.2f} {unit}, more than the "
            f"{ALLOWED_LOSS_RISE} the rule allows: the model is probably damaged; {_GENTLER}"
        )
    for one in filter(None, (known, BY_HAND.get(reads))):
        name, bound = one["measure"], one["bound"]
        if now.get(name, 0.0) > bound:
            found.append(
                f"{MEASURES[name].said} is {now[name]:.3f}, more than {bound:g}, {one['meaning']}: "
                "accuracy after fine-tuning may have suffered; compare both models on a task of "
                f"yours (--evaluate); {_GENTLER}"
            )
    return found


def data_warnings(measured: Measured) -> list[str]:
    """Return a warning if few of the data that a stage trained on were usable."""
    share = measured.get(USABLE_SHARE, 1.0)
    if share >= FEW_USABLE:
        return []
    return [
        f"only {share:.1%} of the auxiliary data are usable, fewer than {FEW_USABLE:.0%}: they "
        "may not be in the model's language. If so, nothing preserved what the model knows"
    ]
