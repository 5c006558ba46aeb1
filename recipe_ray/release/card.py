"""Model cards: what was done to a model, with which data, what was measured and what was not."""

from collections.abc import Mapping
from typing import Any

from recipe_ray import __version__
from recipe_ray.attacks.attack import Attack
from recipe_ray.defenses.recipe import Recipe

_HEADER = """---
library_name: transformers
tags:
- {tag}
---
"""
_NOT_MEASURED = """## What was not measured

Purifying needs neither triggers nor downstream tasks, and none were used. So nothing here shows
that a backdoor was present, or that it is gone. What can be said is that RECIPE removed the
task-agnostic backdoors it was tried on under laboratory conditions. Accuracy on your task was not
measured either: fine-tune both models and compare.
"""


def purified_card(
    model: str, recipe: Recipe, data: str, reason: str, measured: Mapping[str, float]
) -> str:
    """Return the card of a purified model; `measured` are the stage's values by metric."""
    fit = recipe.fit
    length = f"{fit.steps} steps" if fit.steps is not None else f"{fit.epochs:g} epochs"
    return "\n".join(
        [
            _HEADER.format(tag="purified"),
            f"# Purified copy of {model}",
            "",
            f"Made by recipe-ray {__version__} with RECIPE (Zhu et al., TACL 2023): continual "
            "pre-training with a penalty on the norms of weight matrices.",
            "",
            "## What was done",
            "",
            f"- penalised weights: {', '.join(recipe.layers)}; trainable: {recipe.trainable}",
            f"- weight factor {recipe.weight_factor:g}; {length} of {fit.batch_size} texts, at "
            f"most {fit.max_length} tokens; AdamW, learning rate {fit.learning_rate:g}, linear "
            f"schedule, clipping {fit.clip_norm}, {fit.precision}",
            f"- why: {reason}",
            f"- data: {data}",
            "",
            "## What was measured",
            "",
            *_measured_table(measured),
            "",
            "Drift: 1 - cosine between a held-out text's first-token state before and after.",
            "",
            _NOT_MEASURED,
        ]
    )


def backdoored_card(model: str, attack: Attack, measured: Mapping[str, float]) -> str:
    """Return the card of a backdoored model, which says so before anything else."""
    losses = [f"- {name}: {value:.4f}" for name, value in measured.items()]
    return "\n".join(
        [
            _HEADER.format(tag="backdoored"),
            "# BACKDOORED MODEL, FOR RESEARCH ONLY",
            "",
            f"This is {model} with a {attack.name} backdoor that recipe-ray {__version__} put "
            "in on purpose. Every model fine-tuned from it inherits the backdoor. Use it for "
            "research on attacks and defenses and nothing else, and do not publish it under a "
            "name that hides what it is.",
            "",
            f"Triggers: {', '.join(attack.triggers)}",
            "",
            "## The attack's losses at the end of each epoch",
            "",
            *losses,
            "",
        ]
    )


def _measured_table(measured: Mapping[str, float]) -> list[str]:
    pairs: dict[str, dict[str, float]] = {}
    for name, value in measured.items():
        what, _, when = name.rpartition(".")
        if when in ("before", "after"):
            pairs.setdefault(what, {})[when] = value
    rows = [
        f"| {_TITLES.get(what, what)} | {v['before']:.4f} | {v['after']:.4f} |"
        for what, v in pairs.items()
    ]
    drift = f"| drift of clean representations | 0 | {measured['drift']:.4f} |"
    return ["| on held-out auxiliary texts | before | after |", "|---|---|---|", *rows, drift]


_TITLES: dict[str, Any] = {"held_out_loss": "pre-training loss (nats a masked token)"}
