"""One try at a stage: progress notes while it runs, a failure note when it fails.

Every runtime (inline, Tune trial, DDP worker) goes through `attempt`, so `status` sees them alike.
"""

import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from recipe_ray.base.errors import UserError
from recipe_ray.learn.runtime import Progress
from recipe_ray.stages.stage import Stage
from recipe_ray.stages.store import Store

logger = logging.getLogger("recipe_ray")
_NOTE_EVERY_S = 2.0
_LOG_EVERY_S = 15.0


@dataclass
class ProgressNotes:
    """Writes progress to the store and the log, seldom enough to cost nothing."""

    store: Store
    stage: Stage
    then: Callable[[Progress], None] | None = None
    _noted: float = field(default=0.0, init=False)
    _logged: float = field(default=0.0, init=False)
    _started: float = field(default_factory=time.monotonic, init=False)

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        last = progress.step == progress.num_steps
        if now - self._noted >= _NOTE_EVERY_S or last:
            self._noted = now
            elapsed = now - self._started
            note = {**asdict(progress), "elapsed_s": round(elapsed, 1)}
            self.store.write_progress(self.stage.artifact, note)
        if now - self._logged >= _LOG_EVERY_S or last:
            self._logged = now
            values = " ".join(f"{name}={value:.4g}" for name, value in progress.values.items())
            logger.info("%s %d/%d %s", progress.phase, progress.step, progress.num_steps, values)
        if self.then is not None:
            self.then(progress)


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
