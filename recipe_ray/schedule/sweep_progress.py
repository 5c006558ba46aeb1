"""How far a sweep is: its events, stages by state, cells, time to go, and what drivers say of it.

It is for people who watch. The driver of a sweep decides nothing by it. It does not use Ray.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, FiniteFloat

from recipe_ray.learn.progress import Throughput
from recipe_ray.store.claims import DRIVERS
from recipe_ray.store.notes import Note, read_notes
from recipe_ray.store.remote import reopen_files
from recipe_ray.store.store import Store

if TYPE_CHECKING:
    from recipe_ray.experiment.plan import Plan
    from recipe_ray.stages.stage import Stage

# lost: its processes died and it starts again; elsewhere: another driver makes it
EventKind = Literal["skipped", "started", "progress", "finished", "failed", "lost", "elsewhere"]


@dataclass(frozen=True)
class SweepEvent:
    """One thing that happened to one stage; `wall_s` counts from the stage's start.

    `left_s` is to the end of the whole sweep, None if that cannot be said yet.
    """

    kind: EventKind
    stage: Stage
    wall_s: float = 0.0
    progress: Throughput | None = None  # of kind "progress"
    message: str = ""  # of "failed" and "lost": why; of "elsewhere": who makes it
    left_s: float | None = None


@dataclass(frozen=True)
class SweepOutcome:
    """Keys of the stages that were done now, were made by others, or failed (with the reason)."""

    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # there already, or committed by another driver meanwhile
    failed: dict[str, str] = field(default_factory=dict)
    wall_s: float = 0.0


@dataclass
class _Running:
    since: float
    advance: Throughput | None = None


class SweepProgress:
    """Counts the events of one sweep; `done` are the stages that were there before.

    Not safe for threads: `see` it and ask it in one, or hold a lock.
    """

    def __init__(
        self, plan: Plan, done: Collection[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        from recipe_ray.schedule.durations import Likeness, WallTimes

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
        """Take note of one event; those of a kind that changes nothing are ignored."""
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
        """Return for how many seconds nothing has run while stages wait, 0 while something runs."""
        return 0.0 if self._running or not self._open else self._clock() - self._ran

    def left_s(self) -> float | None:
        """Return the seconds to the sweep's end, None while some stage is unlike all that ended.

        What is left of all stages, divided by the mean number that ran at once so far; but no less
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


# a lease this old is of a driver that was killed, or lost the store; also a stage's progress note
STALE_S = 60.0
STALL_S = 60.0  # longer than a process takes to start on a busy machine


class _States(BaseModel):
    model_config = ConfigDict(strict=True, defer_build=True)
    waiting: int
    running: int
    done: int
    failed: int


class _AtWork(BaseModel):
    model_config = ConfigDict(strict=True, defer_build=True)
    key: str
    kind: str
    label: str
    seed: int | None = None  # older versions do not say it
    running_s: FiniteFloat


class DriverNote(Note):
    """What a driver's lease says to people: the driver, its sweep, and how far it is.

    A search has a part instead of cells.
    """

    experiment: str
    host: str
    pid: int
    started: str
    counted: str
    states: _States
    running: list[_AtWork]
    left_s: FiniteFloat | None
    idle_s: FiniteFloat = 0.0
    part: str = ""
    cells: int = 0
    cells_done: int = 0


class DriverNotes:
    """What the leases of all drivers in one store say; damaged ones are named and left out."""

    def __init__(self, store: Store) -> None:
        self._files = reopen_files(store.uri)

    def all(self) -> list[dict[str, Any]]:
        """Return all of them, in the order of their drivers' names; `age_s` shows which live."""
        found = read_notes(self._files, DRIVERS, DriverNote)
        return [{**note, "driver": name} for name, note in found.items()]

    def living(self) -> list[dict[str, Any]]:
        """Return those that are fresh."""
        return [note for note in self.all() if age_s(note) < STALE_S]


def at_work(running: Iterable[tuple[Stage, float]]) -> list[dict[str, Any]]:
    """Return what a note says of stages that run, each with the seconds since it began."""
    return [
        {
            "key": s.key,
            "kind": s.name,
            "label": s.label(),
            "seed": s.seed,
            "running_s": round(running_s, 1),
        }
        for s, running_s in running
    ]


def stalled_s(notes: Iterable[dict[str, Any]]) -> float | None:
    """Return for how many seconds no living driver has run anything while stages wait.

    None if something runs, or did within the last `STALL_S`.
    """
    idle = [float(note.get("idle_s", 0.0)) for note in notes]
    return min(idle) if idle and min(idle) >= STALL_S else None


def age_s(note: dict[str, Any]) -> float:
    """Return the seconds since a note was written, by this machine's clock."""
    return (datetime.now(UTC) - datetime.fromisoformat(note["time"])).total_seconds()
