"""What happens as trials start, end and die: the agenda, the results, the failures, the events."""

import time
from typing import Any

from ray import tune

from recipe_ray.distributed.agenda import Agenda
from recipe_ray.distributed.driver import Driver
from recipe_ray.distributed.events import EventKind, SweepEvent
from recipe_ray.distributed.trial import FAILURE
from recipe_ray.experiment.collect import collect
from recipe_ray.experiment.plan import Plan
from recipe_ray.stages.advance import Advance
from recipe_ray.stages.attempt import failure_note
from recipe_ray.stages.stage import Stage
from recipe_ray.stages.store import Store

_LOOK_EVERY_S = 1.0


class StageLostError(RuntimeError):
    """The process of a stage died (killed, out of memory, its node lost) more than allowed."""


class ParentFailedError(RuntimeError):
    """A stage was not started because the stage it needs failed."""


class Watch(tune.Callback):
    """Hears of every trial from Tune and looks at the store's progress notes once a second."""

    def __init__(
        self,
        plan: Plan,
        store: Store,
        agenda: Agenda,
        driver: Driver,
    ) -> None:
        self._plan = plan
        self._store = store
        self._agenda = agenda
        self._driver = driver
        self._started: dict[str, float] = {}
        # what a killed sweep noted last is no progress of this one
        self._noted = {key: note["time"] for key, note in store.progress().items()}
        self._looked = 0.0
        self.done: list[str] = []
        self.failed: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles it for restoring, which the store does, and cannot."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a stage runs, once, also where Tune starts it again."""
        stage = self._stage(trial)
        if stage.key not in self._started:
            self._started[stage.key] = time.monotonic()
            self._tell("started", stage)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Collect a committed stage's rows, or give up what needs a failed one."""
        stage = self._stage(trial)
        message = str(trial.last_result.get(FAILURE, ""))
        if message:
            self._fail(stage, message)
            return
        collect(self._plan, self._store, stage)
        self._agenda.commit(stage)
        self.done.append(stage.key)
        self._tell("finished", stage)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Put on record a stage whose process died; the stage itself could not."""
        stage = self._stage(trial)
        error = StageLostError(_last_line(trial))
        self._store.record_failure(stage.artifact, failure_note(error))
        self._fail(stage, f"{type(error).__name__}: {error}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Pass on the progress of running stages, about once a second."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        self._driver.record()
        notes = self._store.progress()
        for stage in self._agenda.running:
            note = notes.get(stage.key)
            # a note of the same time was told already
            if note is None or self._noted.get(stage.key) == note["time"]:
                continue
            self._noted[stage.key] = note["time"]
            self._tell("progress", stage, progress=Advance.from_note(note))

    def forget_the_running(self) -> None:
        """Remove the progress notes of stages that an interrupted sweep leaves unfinished."""
        for stage in self._agenda.running:
            self._store.clear_progress(stage.artifact)

    def _fail(self, stage: Stage, message: str) -> None:
        self._store.clear_progress(stage.artifact)
        self.failed[stage.key] = message
        self._tell("failed", stage, message=message)
        for child in self._agenda.fail(stage):
            error = ParentFailedError(f"parent failed: {stage.artifact.folder}: {message}")
            self._store.record_failure(child.artifact, failure_note(error))
            self.failed[child.key] = str(error)
            self._tell("failed", child, message=str(error))

    def _stage(self, trial: Any) -> Stage:
        return self._plan.stages[trial.config["stage"]]

    def _tell(
        self, kind: EventKind, stage: Stage, progress: Advance | None = None, message: str = ""
    ) -> None:
        started = self._started.get(stage.key)
        wall_s = time.monotonic() - started if started is not None else 0.0
        self._driver.on_event(SweepEvent(kind, stage, wall_s, progress, message))


def _last_line(trial: Any) -> str:
    error = trial.get_error()
    lines = str(error).strip().splitlines() if error is not None else []
    return lines[-1] if lines else "the process of the stage died"
