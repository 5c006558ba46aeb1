"""How fast a stage goes and how long it still takes, from its progress and a clock.

It is measured only over the last reports, never from step 0: a stage that continues from a
checkpoint at step 900 has not done 900 steps in its first second.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_MARK_EVERY_S = 1.0
_MARKS = 30  # the rate is that of the last half minute, or of the last 30 steps if they are slow


@dataclass(frozen=True)
class Progress:
    """How far a stage is: what it does, its step, of how many, and the losses.

    `samples` are those of the one step that is reported, of all workers. `resumed_at` is the step
    from which this process continued the phase, 0 if it began it.
    """

    phase: str
    step: int
    num_steps: int
    values: dict[str, float] = field(default_factory=dict)
    samples: int = 0
    resumed_at: int = 0


_PROGRESS_FIELDS = tuple(field.name for field in fields(Progress))


@dataclass(frozen=True)
class Throughput:
    """A progress and its speed; rates are None until a second report of the phase was seen.

    `elapsed_s` counts from when this process took the stage up, `left_s` to the phase's end.
    """

    progress: Progress
    elapsed_s: float = 0.0
    samples_per_s: float | None = None
    left_s: float | None = None

    def to_note(self) -> dict[str, Any]:
        """Return it flat, as the store keeps it."""
        rates = {"elapsed_s": round(self.elapsed_s, 1)}
        return {
            **asdict(self.progress),
            **rates,
            "samples_per_s": self.samples_per_s,
            "left_s": self.left_s,
        }

    @classmethod
    def from_note(cls, note: dict[str, Any]) -> "Throughput":
        """Read it back; what an older version did not note is unknown."""
        progress = Progress(**{name: note[name] for name in _PROGRESS_FIELDS if name in note})
        known = (note.get("elapsed_s", 0.0), note.get("samples_per_s"), note.get("left_s"))
        return cls(progress, *known)


Observer = Callable[[Throughput], None]


@dataclass(frozen=True)
class _Mark:
    at: float
    step: int
    samples: int  # since the stage was taken up


class Meter:
    """Makes a `Throughput` of every `Progress` of one stage; `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._phase = ""
        self._samples = 0
        self._marks: deque[_Mark] = deque(maxlen=_MARKS)

    def __call__(self, progress: Progress) -> Throughput:
        now = self._clock()
        self._samples += progress.samples
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._marks.clear()
        here = _Mark(now, progress.step, self._samples)
        first = self._marks[0] if self._marks else here
        if not self._marks or now - self._marks[-1].at >= _MARK_EVERY_S:
            self._marks.append(here)
        elapsed_s, passed_s = now - self._started, now - first.at
        steps = progress.step - first.step
        if passed_s <= 0 or steps <= 0:
            return Throughput(progress, elapsed_s)
        left_s = (progress.num_steps - progress.step) * passed_s / steps
        return Throughput(progress, elapsed_s, (here.samples - first.samples) / passed_s, left_s)


class Observers:
    """Takes a runtime's reports of progress, measures the speed and tells all observers."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers
        self._meter = Meter()

    def __call__(self, progress: Progress) -> None:
        advance = self._meter(progress)
        for observer in self._observers:
            observer(advance)


class Sometimes:
    """Says when something is due again: at the first time, after `every_s`, and at a last step."""

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s = every_s
        self._clock = clock
        self._last: float | None = None

    def due(self, progress: Progress) -> bool:
        """Tell whether it is due now, and count it as done if so."""
        now = self._clock()
        soon = self._last is not None and now - self._last < self._every_s
        if soon and progress.step != progress.num_steps:
            return False
        self._last = now
        return True
