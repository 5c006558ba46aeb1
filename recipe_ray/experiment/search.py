"""What a search file may say, and one candidate's settings drawn from its space.

A search is the laboratory's tool. It scores by MASR, so it needs the attack's triggers, which a
defender does not have. What it finds is a setting to state beforehand, not one to fit to a model.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from recipe_ray.attacks.attack import AnyAttack
from recipe_ray.base.errors import SpecError
from recipe_ray.base.limits import CELLS
from recipe_ray.base.spec import Spec
from recipe_ray.data.corpora import LISTED
from recipe_ray.data.corpus import AnyCorpus
from recipe_ray.defenses.defense import AnyDefense, Defense
from recipe_ray.experiment.spec import Launch
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import Model
from recipe_ray.stages.pretrain import Pretraining
from recipe_ray.tasks.task import AnyTask

Seed = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
# below every score by a rule: of a candidate that cannot be trained, or whose look is at chance
WORST = -3.0
# nats by which the pre-training loss may rise before a candidate counts as damaged (as in the rule)
ALLOWED_RISE = 0.5


class Range(Spec):
    """The range that a number is drawn from."""

    low: PositiveFloat
    high: PositiveFloat
    log: bool = Field(True, description="draw uniformly in the logarithm")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.high <= self.low:
            raise SpecError(f"high = {self.high:g} is not above low = {self.low:g}")
        return self


class Space(Spec):
    """What varies of the defense."""

    weight_factor: Range = Range(low=0.01, high=10)
    learning_rate: Range | None = Field(None, description="None: the defense's own")
    layers: tuple[Annotated[tuple[str, ...], Field(min_length=1)], ...] = Field(
        (), description="sets of weight groups; each candidate draws one. Empty: the defense's own"
    )


class Score(Spec):
    """How good a candidate is, from the ACC and MASR of a look; higher is better, at most 1.

    A look at chance has the score WORST by every rule: its MASR says nothing.
    """

    rule: Literal["acc-masr", "masr-with-acc"] = "acc-masr"
    within: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="for rule masr-with-acc: ACC that may be lost, as a fraction (0.02: 2 %)",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.rule == "masr-with-acc") != (self.within is not None):
            raise SpecError(
                "within belongs to rule masr-with-acc, which needs it: give a fraction such as 0.02"
            )
        return self

    def of(self, acc: float, masr: float, undefended_acc: float) -> float:
        """Return ACC - MASR; or -MASR, and below -1 if too much ACC is lost."""
        if self.within is None:
            return acc - masr
        lacking = undefended_acc - self.within - acc
        return -masr if lacking <= 0 else -1.0 - lacking


def score_of_displacement(farthest: float, rise: float) -> float:
    """Return how good a candidate is by its representations alone, above WORST; higher is better.

    `farthest`: the farthest trigger's displacement. A damaged one (`rise` of the pre-training loss
    above ALLOWED_RISE) is worse than any that is not: its representations say little.
    """
    if rise > ALLOWED_RISE:
        return -1.0 - rise / (1.0 + rise)
    return -farthest / (1.0 + farthest)


class Quick(Spec):
    """The short fine-tuning of a look, on a task's dev split."""

    task: AnyTask
    fit: FitSpec = FitSpec(epochs=1, learning_rate=2e-5, max_length=64)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.task.evaluate_on != "dev":
            raise SpecError(
                f"task {self.task.label()!r} has evaluate_on: {self.task.evaluate_on}, but a "
                "search must not choose on test data: set evaluate_on: dev"
            )
        return self


class Confirm(Spec):
    """The full grid of the best: all epochs, full fine-tuning, test data."""

    survivors: PositiveInt = Field(2, description="how many of the best candidates are confirmed")
    tasks: tuple[AnyTask, ...] = Field(min_length=1)
    seeds: tuple[Seed, ...] = Field((0,), min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for task in self.tasks:
            if task.evaluate_on != "test":
                raise SpecError(
                    f"task {task.label()!r} has evaluate_on: {task.evaluate_on}; survivors are "
                    "confirmed on data that were not used to choose them: set evaluate_on: test"
                )
        return self


class Search(Spec):
    """One question: which weight factor (learning rate, layers) is best, by ASHA."""

    REMOVED: ClassVar[Mapping[str, str]] = {
        "grid": "the comparison with a full grid moved to the benchmarks. Delete the field; to "
        "compare, run `python -m benchmarks.full_grid FILE --weight-factors 0.1 1 10`"
    }
    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=48)
    description: str = ""
    model: Model
    attack: AnyAttack = Field(description="MASR is measured with its triggers")
    defense: AnyDefense = Field(description="one with a weight factor that trains by epochs")
    auxiliary: AnyCorpus = LISTED["bookcorpus"]()
    space: Space = Space()
    sampling: Literal["random", "optuna"] = "random"
    trials: PositiveInt = Field(description="candidates in all")
    epochs: PositiveInt = Field(
        description="passes over the auxiliary data if a candidate is never stopped"
    )
    grace: PositiveInt = Field(1, description="epochs before a candidate can be stopped")
    reduction: int = Field(
        3, ge=2, description="at each rung one in this many candidates continues"
    )
    score: Score = Score()
    rank_by: Literal["fine-tuning", "representation"] = Field(
        "fine-tuning",
        description="what a look is. representation: how far triggers move the PTM's own vectors, "
        "in seconds; only candidates that come through all epochs are fine-tuned",
    )
    quick: Quick
    confirm: Confirm
    seed: Seed = Field(0, description="of drawing, purification and evaluations")
    pretraining: Pretraining = Pretraining()
    finetuning: FitSpec = Field(
        FitSpec(epochs=3, learning_rate=2e-5, max_length=128), description="of confirmation"
    )
    release_seed: Seed = Field(0, description="of pre-training and poisoning")
    launch: Launch = Launch()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.attack.poisons or not self.attack.triggers:
            raise SpecError(
                f"attack {self.attack.label()!r} leaves no backdoor whose MASR could be measured"
            )
        # each look is a cell of its own
        CELLS.check(self.trials * self.epochs, "trials x epochs, one evaluation each")
        if self.grace > self.epochs:
            raise SpecError(f"grace = {self.grace} is more than epochs = {self.epochs}")
        varied = ["weight_factor", "fit", *(["layers"] if self.space.layers else [])]
        lacking = [name for name in varied if name not in type(self.defense).model_fields]
        if lacking:
            raise SpecError(
                f"defense {self.defense.label()!r} has no field {', '.join(lacking)}, which a "
                "search varies; recipe has it"
            )
        return self

    @property
    def rungs(self) -> tuple[int, ...]:
        """The epochs after which candidates are compared, the last one being all epochs."""
        found = [self.grace]
        while found[-1] * self.reduction < self.epochs:
            found.append(found[-1] * self.reduction)
        return tuple(dict.fromkeys((*found, self.epochs)))


_DIGITS = 3  # of a drawn number: enough to tell candidates apart, few enough to write down
JOINT = "+"  # between weight groups, in a setting that must be one word


@dataclass(frozen=True)
class Settings:
    """What a candidate changes of the search's defense; None: nothing."""

    weight_factor: float
    learning_rate: float | None = None
    layers: str | None = None  # weight groups joined by "+"

    @classmethod
    def of(cls, drawn: dict[str, Any]) -> Self:
        """Return settings as they were drawn, numbers rounded to three digits."""
        return cls(**{name: _rounded(value) for name, value in drawn.items()})

    def given(self) -> dict[str, Any]:
        """Return those that are not None, as `of` takes them."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def title(self) -> str:
        """Return a name: wf0.31, or wf0.31-lr0.0002-ffn_in+query."""
        rate = f"-lr{self.learning_rate:g}" if self.learning_rate is not None else ""
        layers = f"-{self.layers}" if self.layers is not None else ""
        return f"wf{self.weight_factor:g}{rate}{layers}"

    def put_into(self, search: Search) -> Defense:
        """Return the search's defense with these settings and all of its epochs."""
        base: Any = search.defense
        rate = self.learning_rate or base.fit.learning_rate
        fit = base.fit.revised(steps=None, epochs=search.epochs, learning_rate=rate)
        layers = {} if self.layers is None else {"layers": tuple(self.layers.split(JOINT))}
        title = f"{base.label()}-{self.title()}"
        changed: Defense = base.revised(
            weight_factor=self.weight_factor, fit=fit, title=title, **layers
        )
        return changed


def drawn_at_random(search: Search) -> list[Settings]:
    """Return the candidates of random sampling; more trials draw the same ones first."""
    generator = np.random.default_rng(search.seed)
    return [_draw(search, generator) for _ in range(search.trials)]


def layer_sets(search: Search) -> list[str]:
    """Return the sets of weight groups to choose from, each as one word."""
    return [JOINT.join(groups) for groups in search.space.layers]


def _draw(search: Search, generator: np.random.Generator) -> Settings:
    space = search.space
    drawn: dict[str, Any] = {"weight_factor": _from(space.weight_factor, generator)}
    if space.learning_rate is not None:
        drawn["learning_rate"] = _from(space.learning_rate, generator)
    if space.layers:
        drawn["layers"] = layer_sets(search)[generator.integers(len(space.layers))]
    return Settings.of(drawn)


def _from(wanted: Range, generator: np.random.Generator) -> float:
    share = float(generator.random())
    if wanted.log:
        return wanted.low * math.exp(share * math.log(wanted.high / wanted.low))
    return wanted.low + share * (wanted.high - wanted.low)


def _rounded(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
