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

    def add(self, likeness: Likeness, wall_s: float) -> None:
        """Learn of a finished stage."""
        self._times[likeness.close].append(wall_s)
        self._times[likeness.rough].append(wall_s)

    def expected_s(self, likeness: Likeness) -> float | None:
        """Return the median of those closely alike, else of those roughly, None without any."""
        times = self._times.get(likeness.close) or self._times.get(likeness.rough)
        return median(times) if times else None
