"""How far a sweep is: stages by state, cells, and the time to go. Free of Ray, like the agenda."""

import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache

from recipe_ray.distributed.events import EventKind, SweepEvent
from recipe_ray.experiment.plan import Plan
from recipe_ray.experiment.wall_times import Likeness, WallTimes
from recipe_ray.stages.advance import Advance
from recipe_ray.stages.stage import Stage


@dataclass
class _Running:
    since: float
    advance: Advance | None = None


class Tally:
    """Counts what the events of one sweep come to; `done` are the stages that were there before.

    Not safe for threads: `see` it and ask it in one, or hold a lock.
    """

    def __init__(
        self, plan: Plan, done: Collection[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._num_stages = len(plan.stages)
        self._open = {key: stage for key, stage in plan.stages.items() if key not in done}
        self._likeness = {key: Likeness.of(stage.columns()) for key, stage in self._open.items()}
        self._running: dict[str, _Running] = {}
        self._times = WallTimes()
        self._done, self._failed = self._num_stages - len(self._open), 0
        self._cells_of = Counter(cell.last.key for cell in plan.cells)
        self.cells = len(plan.cells)
        self.cells_done = sum(n for key, n in self._cells_of.items() if key in done)
        self._began: float | None = None
        self._ran = clock()  # when something ran last
        self._spent_s = 0.0  # by stages that ended
        self._heard: dict[EventKind, Callable[[SweepEvent], None]] = {
            "started": self._started,
            "progress": self._progressed,
            "finished": self._finished,
            "skipped": self._count_done,  # another driver made it meanwhile
            "failed": self._count_failed,
        }

    def see(self, event: SweepEvent) -> None:
        """Take note of one event; those of a kind that changes nothing are passed over."""
        heard = self._heard.get(event.kind)
        if heard is not None and event.stage.key in self._open:
            heard(event)

    def states(self) -> dict[str, int]:
        """Return how many stages wait, run, are done and have failed."""
        waiting = len(self._open) - len(self._running)
        counts = {"waiting": waiting, "running": len(self._running)}
        return {**counts, "done": self._done, "failed": self._failed}

    def running(self) -> list[tuple[Stage, float]]:
        """Return the stages that run and for how many seconds they have."""
        now = self._clock()
        return [(self._open[key], now - how.since) for key, how in self._running.items()]

    def idle_s(self) -> float:
        """Return for how many seconds nothing has run while stages wait, 0 while something does."""
        return 0.0 if self._running or not self._open else self._clock() - self._ran

    def left_s(self) -> float | None:
        """Return the seconds to the sweep's end, None while some stage is like none that ended.

        What is left of all stages, at as many side by side as ran so far in the mean; but no less
        than the longest chain of them, which cannot run side by side.
        """
        now = self._clock()
        expected = cache(self._times.expected_s)
        left: dict[str, float] = {}
        for key, likeness in self._likeness.items():
            own = self._left_of(self._running.get(key), expected(likeness), now)
            if own is None:
                return None
            left[key] = own
        chain: dict[str, float] = {}
        for key, stage in self._open.items():  # parents come first
            above = chain.get(stage.parent.key, 0.0) if stage.parent is not None else 0.0
            chain[key] = left[key] + above
        return max(sum(left.values()) / self._side_by_side(now), *chain.values(), 0.0)

    def _left_of(
        self, running: _Running | None, expected: float | None, now: float
    ) -> float | None:
        if running is None:
            return expected
        in_phase = running.advance.left_s if running.advance is not None else None
        if expected is None:
            return in_phase
        return max(expected - (now - running.since), in_phase or 0.0)

    def _side_by_side(self, now: float) -> float:
        if self._began is None or now <= self._began:
            return 1.0
        spent_s = self._spent_s + sum(now - how.since for how in self._running.values())
        return max(spent_s / (now - self._began), 1.0)

    def _started(self, event: SweepEvent) -> None:
        now = self._clock()
        self._began = now if self._began is None else self._began
        self._running[event.stage.key] = _Running(now)

    def _progressed(self, event: SweepEvent) -> None:
        running = self._running.get(event.stage.key)
        if running is not None:
            running.advance = event.progress

    def _finished(self, event: SweepEvent) -> None:
        self._times.add(self._likeness[event.stage.key], event.wall_s)
        self._count_done(event)

    def _count_failed(self, event: SweepEvent) -> None:
        self._failed += 1
        self._end(event)

    def _count_done(self, event: SweepEvent) -> None:
        self._done += 1
        self.cells_done += self._cells_of[event.stage.key]
        self._end(event)

    def _end(self, event: SweepEvent) -> None:
        # a stage that fails because its parent did never ran
        del self._open[event.stage.key], self._likeness[event.stage.key]
        if self._running.pop(event.stage.key, None) is not None:
            self._ran = self._clock()
            self._spent_s += event.wall_s
