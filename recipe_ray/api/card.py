"""The texts of model cards: what follows the head that the hub reads (`metadata.py`).

A card says what was done to a model, with which data, what was measured and what was not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recipe_ray import __version__
from recipe_ray.base.printable import in_markdown
from recipe_ray.defenses.defense import Defense
from recipe_ray.defenses.recipe import Recipe
from recipe_ray.defenses.unlearn import Unlearn
from recipe_ray.learn.optim import FitSpec
from recipe_ray.stages.evaluate import HELD_OUT_UNIGRAM
from recipe_ray.stages.guard import TITLES

if TYPE_CHECKING:
    from recipe_ray.attacks.attack import Attack

_NOT_CLAIMED = """## What is not claimed

Purifying needs neither triggers nor downstream tasks{task}. So nothing here proves that a backdoor
was present, or that it is gone.{scan} What can be said is that {way} removed most of the effect of
the task-agnostic backdoors it was tried on under laboratory conditions. {accuracy}
"""
_OF_SCAN = " The scan is a search without proof, and what it found did not help the purifier."
_GUIDED = (
    " The scan is a search without proof. Scans of its own told the defense what to train away, so "
    "a silent one is what it was trained for."
)
_OF_TASK = "; the purifier saw neither those of the measurement above nor their labels"
_NO_TASK = ", and none were used"
_ACCURACY = "Accuracy on your task was not\nmeasured: fine-tune both models and compare."
_ACCURACY_OF_TASK = "Accuracy on other tasks was not\nmeasured."


@dataclass(frozen=True)
class About:
    """A model as its card speaks of it: the card's head, name, samples and the unit of its loss."""

    head: str  # from `---` to `---`, see `metadata.py`
    model: str
    sample: str  # text, image, pair
    loss_unit: str


@dataclass(frozen=True)
class Told:
    """What a card says in sentences: the data, why these settings, notes, and warnings."""

    data: str
    reason: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    scan: tuple[str, ...] = ()  # lines of its section, none if nothing was scanned
    scan_why: str = ""  # why nothing was
    source: tuple[str, ...] = ()  # where the model comes from, its licence
    hashes: tuple[str, ...] = ()  # of the data
    task: str = ""  # that descendants were fine-tuned on
    rates: Sequence[Sequence[str]] = ()  # what was measured there, titles first


def purified_card(about: About, defense: Defense, told: Told, measured: Mapping[str, float]) -> str:
    """Return the card of a purified model; `measured` are the stage's values by metric.

    Warnings come first. Sentences and names may quote
    what is from outside, so none of their signs is read as Markdown.
    """
    claims = {
        "way": "RECIPE" if isinstance(defense, Recipe) else f"`{defense.name}`",
        "task": _OF_TASK if told.task else _NO_TASK,
        "scan": _GUIDED if defense.scans else _OF_SCAN if told.scan else "",
        "accuracy": _ACCURACY_OF_TASK if told.task else _ACCURACY,
    }
    return "\n".join(
        [
            about.head,
            f"# Purified copy of {in_markdown(about.model)}",
            "",
            *_listed("## Warnings", told.warnings),
            f"Made by recipe-ray {__version__} with {_way(defense)}",
            "",
            *_listed("## Where it comes from", told.source),
            "## What was done",
            "",
            *_settings(defense, about.sample),
            f"- why: {in_markdown(told.reason)}",
            f"- data: {in_markdown(told.data)}",
            *(f"- {in_markdown(one)}" for one in told.hashes),
            *(f"- {in_markdown(note)}" for note in told.notes),
            "",
            "## What was measured",
            "",
            *_measured_table(measured, about),
            "",
            *_word_frequencies(measured, about),
            f"Drift: 1 - cosine between a held-out {about.sample}'s features before and after (of "
            "a text, its first token's state).",
            "",
            *_task_section(told),
            *_scan_section(told),
            _NOT_CLAIMED.format(**claims),
        ]
    )


def backdoored_card(
    head: str,
    model: str,
    attack: Attack,
    measured: Mapping[str, float],
    notes: Sequence[str] = (),
) -> str:
    """Return the card of a backdoored model, which says so before anything else."""
    losses = [f"- {n}: {value:.4f}" for n, value in measured.items() if n.startswith("loss.")]
    return "\n".join(
        [
            head,
            "# BACKDOORED MODEL, FOR RESEARCH ONLY",
            "",
            f"This is {in_markdown(model)} with a {attack.name} backdoor that recipe-ray "
            f"{__version__} put in on purpose. Models fine-tuned from it may inherit the backdoor. "
            "Use it for research on attacks and defenses and nothing else, and do not publish it "
            "under a name that hides what it is.",
            "",
            f"Triggers: {', '.join(map(in_markdown, attack.triggers))}",
            "",
            *_listed("## Notes", notes),
            "## The attack's losses at the end of each epoch",
            "",
            *losses,
            "",
            "## What is not claimed",
            "",
            "Losses do not show that the backdoor works, or that a model fine-tuned from this one "
            "has it. `recipe-ray evaluate` with `--triggers` measures that on a task.",
            "",
        ]
    )


def _task_section(told: Told) -> list[str]:
    """Return what descendants do, in percent: of the model as it was given, of this one."""
    if not told.task:
        return []
    title, *rows = told.rates
    return [
        f"## Fine-tuned on {in_markdown(told.task)}",
        "",
        f"| {' | '.join(title)} |",
        f"|{'---|' * len(title)}",
        *(f"| {' | '.join(map(in_markdown, row))} |" for row in rows),
        "",
        "ACC: accuracy. ASR: how often a trigger brings about its best label; AASR, MASR: mean and "
        "maximum over triggers. Floor: a clean model, which was not backdoored.",
        "",
    ]


def _scan_section(told: Told) -> list[str]:
    if told.scan:
        return ["## The scan before and after", "", *told.scan, ""]
    return ["## Not scanned", "", f"{told.scan_why}.", ""] if told.scan_why else []


def _way(defense: Defense) -> str:
    if isinstance(defense, Recipe):
        return (
            "RECIPE (Zhu et al., TACL 2023): continual pre-training with a penalty on the norms of "
            "weight matrices."
        )
    if isinstance(defense, Unlearn):
        before = f" Before that, {_way(defense.plus)}" if defense.plus.acts else ""
        return (
            "unlearning, which is ours, after LMSanitator (Wei et al., NDSS 2024) and Patronus: "
            "what a label-free scan found was put into auxiliary samples, and its effect was "
            f"trained away.{before} What no scan found is still there."
        )
    return f"the defense `{defense.name}`."


def _settings(defense: Defense, sample: str) -> list[str]:
    if isinstance(defense, Recipe):
        return [
            f"- penalised weights: {', '.join(defense.layers)}; trainable: {defense.trainable}",
            f"- weight factor {defense.weight_factor:g}; {_training(defense.fit, sample)}",
            f"- what held the model: {_holding(defense)}",
        ]
    if isinstance(defense, Unlearn):
        named = ", ".join(one.name for one in defense.detectors)
        return [
            *(_settings(defense.plus, sample) if defense.plus.acts else ()),
            f"- detectors: {named}; at most {defense.rounds} rounds of a scan and a training",
            f"- a round: {_training(defense.fit, sample)}",
            "- what held the model: its own states of clean samples, weight "
            f"{defense.hold:g}; those with something put in were led back to them",
        ]
    fields = defense.model_dump(mode="json", exclude_defaults=True)
    return [f"- {name}: {in_markdown(str(value))}" for name, value in fields.items()]


def _training(fit: FitSpec, sample: str) -> str:
    length = f"{fit.steps} steps" if fit.steps is not None else f"{fit.epochs:g} epochs"
    return (
        f"{length} of {fit.batch_size} {sample}s (texts: at most {fit.max_length} tokens); "
        f"{fit.optimizer}, learning rate {fit.learning_rate:g}, {fit.schedule} schedule, "
        f"clipping {fit.clip_norm}, {fit.precision}"
    )


def _holding(recipe: Recipe) -> str:
    found = []
    if recipe.pretraining_weight:
        found.append(f"its pre-training loss, weight {recipe.pretraining_weight:g}")
    if recipe.distillation:
        found.append(
            f"its own states of clean samples ({recipe.distilled}), weight "
            f"{recipe.distillation:g}: self-distillation, which is ours and not of the paper"
        )
    return "; ".join(found) or "nothing"


def _listed(title: str, lines: Sequence[str]) -> list[str]:
    return [title, "", *(f"- {in_markdown(line)}" for line in lines), ""] if lines else []


def _word_frequencies(measured: Mapping[str, float], about: About) -> list[str]:
    if HELD_OUT_UNIGRAM not in measured:
        return []
    return [
        f"Word frequencies alone give a loss of {measured[HELD_OUT_UNIGRAM]:.4f} "
        f"{about.loss_unit} there. The loss before purification is lower by what the "
        "pre-training head knows about context.",
        "",
    ]


def _measured_table(measured: Mapping[str, float], about: About) -> list[str]:
    pairs: dict[str, dict[str, float]] = {}
    for name, value in measured.items():
        what, _, when = name.rpartition(".")
        if when in ("before", "after"):
            pairs.setdefault(what, {})[when] = value
    titles = {"held_out_loss": f"pre-training loss ({about.loss_unit})", **TITLES}
    rows = [
        f"| {titles.get(what, what)} | {v['before']:.4f} | {v['after']:.4f} |"
        for what, v in pairs.items()
    ]
    alone = {"drift": ("drift of clean representations", 0)}
    alone |= {name: (title, 1) for name, title in TITLES.items()}
    rows += [
        f"| {title} | {start} | {measured[name]:.4f} |"
        for name, (title, start) in alone.items()
        if name in measured
    ]
    return [f"| on held-out auxiliary {about.sample}s | before | after |", "|---|---|---|", *rows]
