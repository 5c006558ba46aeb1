"""One candidate's settings: drawn from a search's space, put into its defense."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from recipe_ray.defenses.defense import Defense
from recipe_ray.experiment.search.spec import Range, Search

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
