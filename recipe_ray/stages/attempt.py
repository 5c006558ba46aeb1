"""One try at a stage: who is told while it runs, a failure note when it fails.

Every runtime (inline, Tune trial, DDP worker) goes through `attempt`, so `status` sees them alike.
"""

import logging
import platform
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from recipe_ray.base.errors import UserError
from recipe_ray.data.feed import Feed
from recipe_ray.data.sources import Locations
from recipe_ray.learn.runtime import Runtime
from recipe_ray.stages.advance import Advance, Observer, Observers, Sometimes
from recipe_ray.stages.run import StoreCheckpoints, run_stage, scratch
from recipe_ray.stages.stage import Context, Stage
from recipe_ray.stages.store import Store
from recipe_ray.stages.tensorboard import Board

logger = logging.getLogger("recipe_ray")
_NOTE_EVERY_S = 2.0
_LOG_EVERY_S = 15.0


@dataclass(frozen=True)
class Observed:
    """A runtime whose progress is seen, and the event file that what is measured goes to."""

    runtime: Runtime
    board: Board


@contextmanager
def observed(
    stage: Stage,
    store: Store,
    make_runtime: Callable[..., Runtime],
    *,
    experiment: str,
    checkpoint_every_s: float,
    observers: tuple[Observer, ...] = (),
) -> Iterator[Observed]:
    """Yield a runtime for one stage; store, event file and `observers` hear of its progress.

    `make_runtime` is `LocalRuntime`, or `ProcessGroupRuntime` in a DDP worker.
    """
    notes = ProgressNotes(store, stage, experiment)
    with Board(store, stage, experiment) as board:
        runtime = make_runtime(
            on_progress=Observers(notes, board.on_advance, *observers),
            checkpoints=StoreCheckpoints(store, stage.key),
            checkpoint_every_s=checkpoint_every_s,
        )
        yield Observed(runtime, board)


def attempt(stage: Stage, store: Store, feed: Feed, locations: Locations, seen: Observed) -> None:
    """Run one stage to its commit."""
    with scratch(store) as folder:
        context = Context(store, feed, locations, seen.runtime, folder)
        seen.board.on_measured(run_stage(stage, context))


@dataclass
class ProgressNotes:
    """Writes progress to the store and the log, seldom enough to cost nothing."""

    store: Store
    stage: Stage
    experiment: str
    _notes: Sometimes = field(default_factory=lambda: Sometimes(_NOTE_EVERY_S), init=False)
    _logs: Sometimes = field(default_factory=lambda: Sometimes(_LOG_EVERY_S), init=False)

    def __call__(self, advance: Advance) -> None:
        progress = advance.progress
        if self._notes.due(progress):
            where = {"experiment": self.experiment, "host": platform.node()}
            self.store.write_progress(self.stage.artifact, {**advance.to_note(), **where})
        if self._logs.due(progress):
            values = " ".join(f"{name}={value:.4g}" for name, value in progress.values.items())
            logger.info("%s %d/%d %s", progress.phase, progress.step, progress.num_steps, values)


class Warned(logging.Handler):
    """Hands every warning of the log on, as the sentence that it is."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Hand one on."""
        self._tell(record.getMessage())


@contextmanager
def warnings_heard() -> Iterator[list[str]]:
    """Yield a list to which is added what the log warns of while the context lasts."""
    heard: list[str] = []
    handler = Warned(heard.append)
    logger.addHandler(handler)
    try:
        yield heard
    finally:
        logger.removeHandler(handler)


@contextmanager
def failure_on_record(stage: Stage, store: Store) -> Iterator[None]:
    """Keep in the store why the stage failed, and let the exception go on."""
    try:
        yield
    except Exception as error:
        store.record_failure(stage.artifact, failure_note(error))
        raise


def failure_note(error: BaseException) -> dict[str, Any]:
    """Return what `status` shows of a failure."""
    return {
        "error": type(error).__name__,
        "message": str(error),
        "is_user_error": isinstance(error, UserError),
        "traceback": "".join(traceback.format_exception(error)),
        "failed_at": datetime.now(UTC).isoformat(),
    }
