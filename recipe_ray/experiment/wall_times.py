"""What a stage is expected to take, from the wall times of those like it."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Likeness:
    """What stages that take about as long have in common: closely, else roughly."""

    close: tuple[Any, ...]
    rough: tuple[Any, ...]

    @classmethod
    def of(cls, columns: dict[str, Any]) -> "Likeness":
        """Return that of a stage with these result columns."""
        close = ("kind", "model", "attack", "defense", "task")
        return cls(tuple(map(columns.get, close)), (columns["kind"], columns["model"]))


class WallTimes:
    """Wall times of finished stages by likeness."""

    def __init__(self) -> None:
        self._times: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        self._medians: dict[tuple[Any, ...], float] = {}  # until another is added

    def add(self, likeness: Likeness, wall_s: float) -> None:
        """Learn of a finished stage."""
        for like in (likeness.close, likeness.rough):
            self._times[like].append(wall_s)
            self._medians.pop(like, None)

    def expected_s(self, likeness: Likeness) -> float | None:
        """Return the median of those closely alike, else of those roughly, None without any."""
        like = likeness.close if likeness.close in self._times else likeness.rough
        if like not in self._times:
            return None
        if like not in self._medians:
            self._medians[like] = median(self._times[like])
        return self._medians[like]
