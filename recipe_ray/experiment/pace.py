"""How long stages took in this sweep, and how many short ones make a batch worth a trial.

A Tune trial costs its driver and a process tenths of a second, whatever it does: nothing beside a
training of minutes, most of the time where a stage takes half a second.
"""

from collections import defaultdict
from typing import Any

from recipe_ray.stages.stage import Stage

BATCH_S = 15.0  # work of one batch: a hundred times what a trial costs
SHORT_S = 5.0  # a longer stage gains nothing from company
# a batch is at most this share of what is left for each place, so that all end at about one time
_SHARE = 0.5
_WHAT = ("attack", "defense", "task")


class Pace:
    """Mean seconds of the stages of each kind, model, and attack, defense or task."""

    def __init__(self) -> None:
        self._seconds: dict[Any, float] = defaultdict(float)
        self._count: dict[Any, int] = defaultdict(int)

    def note(self, stage: Stage, seconds: float) -> None:
        """Learn from a stage that ended."""
        like = _like(stage)
        self._seconds[like] += seconds
        self._count[like] += 1

    def batch_size(self, stage: Stage, ready: int, places: int) -> int:
        """Return how many stages such as this one to run in one process, itself included.

        `ready` stages wait for `places`. One where their time is not known or is long.
        """
        like = _like(stage)
        if like not in self._count:
            return 1
        mean_s = self._seconds[like] / self._count[like]
        if mean_s > SHORT_S:
            return 1
        affordable = int(BATCH_S / max(mean_s, 0.01))
        return max(1, min(affordable, int(_SHARE * ready / places)))


def _like(stage: Stage) -> tuple[Any, ...]:
    own = [getattr(stage, name, None) for name in _WHAT]
    return stage.name, stage.model.label(), *(part and part.label() for part in own)
