"""What a person sees while stages run: what runs, how far it is, and the time to go.

On a terminal one line per running stage is redrawn. Elsewhere (a log file, CI) a line is printed
when a stage starts, every half minute while it runs, and when it ends.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
)

from recipe_ray.base.printable import printable
from recipe_ray.learn.progress import Throughput

if TYPE_CHECKING:
    from recipe_ray.schedule.sweep_progress import SweepEvent, SweepOutcome
    from recipe_ray.stages.stage import Stage

# seconds between a stage's lines if nothing is redrawn
_LINE_EVERY_S, _VERBOSE_LINE_EVERY_S = 30.0, 5.0
# a terminal must have so many columns for what can be left out: else all would be cut off
_WITH_BAR, _WITH_VALUES = 100, 130

logger = logging.getLogger("recipe_ray")


class Display:
    """Draws the progress of a plan's stages; use it as a context manager."""

    def __init__(self, num_stages: int, *, quiet: bool, verbose: bool) -> None:
        from recipe_ray.stages.run import Warned

        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._errors = self._console  # they are shown in any case
        if quiet:
            self._errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self._total = num_stages
        self._others: list[Callable[[SweepEvent], None]] = []
        self._line_every_s = _VERBOSE_LINE_EVERY_S if verbose else _LINE_EVERY_S
        self._ended = 0
        self._verbose = verbose
        self._warned = Warned(self._warn)
        self._bars: dict[str, TaskID] = {}
        self._printed: dict[str, float] = {}
        self._seen: set[str] = set()  # stages whose progress was shown
        self._overall: TaskID | None = None
        self._handlers = {
            "skipped": self._skipped,
            "started": self._started,
            "progress": self._progressed,
            "finished": self._finished,
            "failed": self._failed,
            "lost": self._lost,
            "elsewhere": self._left,
        }
        # redrawn lines would break up logs
        self._live = self._console.is_terminal and not verbose and not quiet
        columns: list[ProgressColumn] = [TextColumn("{task.description}")]
        columns += [BarColumn(bar_width=24)] if self._console.width >= _WITH_BAR else []
        columns.append(MofNCompleteColumn())
        # not rich's own estimate: it counts the steps before a resumed stage's checkpoint
        columns.append(TextColumn("{task.fields[left]}"))
        if self._console.width >= _WITH_VALUES:
            columns.append(TextColumn("{task.fields[values]}"))
        self._progress = Progress(*columns, console=self._console, disable=not self._live)

    def __enter__(self) -> Self:
        self._progress.start()
        if not self._verbose:  # otherwise they are among the logs that are shown
            logger.addHandler(self._warned)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        logger.removeHandler(self._warned)
        self._progress.stop()

    def also(self, on_event: Callable[[SweepEvent], None]) -> None:
        """Let another one see the events of a sweep, too."""
        self._others.append(on_event)

    def on_event(self, event: SweepEvent) -> None:
        """Draw one event of a sweep."""
        self._handlers[event.kind](event)
        self._draw_overall(event.left_s)
        for other in self._others:
            other(event)

    def on_progress(self, stage: Stage, advance: Throughput) -> None:
        """Draw how far one stage is."""
        progress = advance.progress
        if stage.key not in self._seen:
            self._seen.add(stage.key)
            if progress.resumed_at:
                self._console.print(
                    f"        {stage.caption} continues from step {progress.resumed_at} of "
                    f"{progress.num_steps} ({progress.phase})",
                    markup=False,
                )
        values = " ".join(f"{name} {value:.3g}" for name, value in progress.values.items())
        if self._live:
            self._progress.update(
                self._bar(stage, progress.num_steps),
                completed=progress.step,
                total=progress.num_steps,
                description=f"{stage.caption}: {progress.phase}",
                left=_to_go(advance.left_s),
                values=values,
            )
            return
        now = time.monotonic()
        if now - self._printed.setdefault(stage.key, now) > self._line_every_s:
            self._printed[stage.key] = now
            told = [f"{progress.phase} {progress.step}/{progress.num_steps}"]
            told += [part for part in (_to_go(advance.left_s), values) if part]
            self._console.print(f"        {stage.caption}: {', '.join(told)}", markup=False)

    def on_doing(self, what: str) -> None:
        """Say what is done around the stages: their start and their end may take half a minute."""
        self._console.print(f"{what} ...", style="dim", markup=False)

    def close(self, outcome: SweepOutcome, store: str) -> None:
        """Say how the sweep ended."""
        self._console.print(
            f"{len(outcome.done)} stages done, {len(outcome.skipped)} were there already, "
            f"{len(outcome.failed)} failed, in {duration(outcome.wall_s)}"
        )
        if outcome.failed:
            self._errors.print(f"why: recipe-ray status --store {store}", markup=False)
        else:
            self._console.print(f"results: recipe-ray report {store}", markup=False)

    def _warn(self, message: str) -> None:
        self._console.print(f"warning: {message}", style="yellow", markup=False)

    def _started(self, event: SweepEvent) -> None:
        self._console.print(f"{self._count()} {event.stage.caption} started", markup=False)
        if self._live:  # it loads its model and its data before it takes a step
            self._bar(event.stage, None)

    def _progressed(self, event: SweepEvent) -> None:
        assert event.progress is not None
        self.on_progress(event.stage, event.progress)

    def _finished(self, event: SweepEvent) -> None:
        self._end(event.stage)
        left = f"; {_to_go(event.left_s)}" if event.left_s else ""
        self._console.print(
            f"{self._count()} {event.stage.caption} done in {duration(event.wall_s)}{left}",
            markup=False,
        )

    def _skipped(self, event: SweepEvent) -> None:
        self._end(event.stage)

    def _failed(self, event: SweepEvent) -> None:
        self._end(event.stage)
        said = [f"{self._count()} {event.stage.caption} FAILED", f"        {event.message}"]
        for line in said:
            self._errors.print(printable(line), style="red", markup=False)

    def _lost(self, event: SweepEvent) -> None:
        self._console.print(
            f"{self._count()} {event.stage.caption} was lost and starts again: {event.message}",
            style="yellow",
            markup=False,
        )

    def _left(self, event: SweepEvent) -> None:
        self._console.print(
            f"{self._count()} {event.stage.caption}: waiting for {event.message}",
            markup=False,
        )

    def _end(self, stage: Stage) -> None:
        self._ended += 1
        bar = self._bars.pop(stage.key, None)
        if bar is not None:
            self._progress.remove_task(bar)

    def _bar(self, stage: Stage, num_steps: int | None) -> TaskID:
        if stage.key not in self._bars:
            self._bars[stage.key] = self._progress.add_task(
                f"{stage.caption}: starting", total=num_steps, left="", values=""
            )
        return self._bars[stage.key]

    def _draw_overall(self, left_s: float | None) -> None:
        if not self._live:
            return
        if self._overall is None:
            self._overall = self._progress.add_task("all stages", left="", values="")
        self._progress.update(
            self._overall, completed=self._ended, total=self._total, left=_to_go(left_s)
        )

    def _count(self) -> str:
        return f"[{self._ended:>{len(str(self._total))}}/{self._total}]"


def duration(seconds: float) -> str:
    """Return seconds as people say them: 48 s, 12.5 min, 3.5 h."""
    for unit, size, enough in (("h", 3600, 1.5), ("min", 60, 1.5)):
        if seconds >= enough * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def size(count: int) -> str:
    """Return bytes as people say them: 512 B, 4.2 kB, 1.5 GB."""
    shown, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if shown < 999.5 or unit == "TB":
            break
        shown /= 1000
    return f"{shown:.0f} {unit}" if unit == "B" or shown >= 99.5 else f"{shown:.1f} {unit}"


def _to_go(seconds: float | None) -> str:
    return "" if seconds is None else f"{duration(seconds)} to go"


@contextmanager
def told_if_slow(what: str, *, quiet: bool = False, after_s: float = 1.0) -> Iterator[None]:
    """Say on standard error what is being done, if it takes longer than `after_s`."""
    timer = threading.Timer(after_s, lambda: typer.secho(f"{what} ...", dim=True, err=True))
    timer.daemon = True
    if not quiet:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
