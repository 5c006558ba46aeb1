"""What happens as trials start, end and die: the queue, the results, the failures, the events."""

import logging
import time
from typing import Any

from ray import tune

from recipe_ray.distributed.contact import head_is_silent
from recipe_ray.distributed.failures import LossCount, error_of, kill_process_of, why_lost
from recipe_ray.distributed.monitor import Monitor
from recipe_ray.distributed.trial import FAILURE, STAGE, STAGES, TOOK_S, WARNINGS
from recipe_ray.experiment.collect import collect
from recipe_ray.experiment.plan import Plan
from recipe_ray.learn.progress import Throughput
from recipe_ray.schedule.stage_queue import StageQueue
from recipe_ray.schedule.sweep_progress import EventKind, SweepEvent
from recipe_ray.stages.run import failure_note
from recipe_ray.stages.stage import Stage
from recipe_ray.store.claims import Claims
from recipe_ray.store.store import Store

_LOOK_EVERY_S = 1.0
logger = logging.getLogger("recipe_ray")


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
        queue: StageQueue,
        claims: Claims,
        driver: Monitor,
    ) -> None:
        self._plan = plan
        self._store = store
        self._queue = queue
        self._claims = claims
        self._losses = LossCount(plan.launch.max_failures)
        self._driver = driver
        self._started: dict[str, float] = {}
        self._trials: dict[str, Any] = {}  # what runs each stage, or did
        self._told_elsewhere: set[str] = set()
        # the last note of a killed sweep is not progress of this one
        self._noted = {key: note["time"] for key, note in store.progress().items()}
        self._looked = 0.0
        self.done: list[str] = []
        self.skipped: list[str] = []
        self.failed: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune would pickle it for restoring, but cannot; the store restores."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say once that a stage runs, even if Tune starts it again."""
        self._trials.update(dict.fromkeys(trial.config[STAGES], trial))
        self._start_next(trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Collect a committed stage's rows, or give up the stages that need a failed one."""
        stage = self._plan.stages[result[STAGE]]
        if not self._queue.is_running(stage.key):
            return  # of a batch that was started again, and reported before
        for warning in result[WARNINGS]:
            logger.warning("%s: %s", stage.caption, warning)
        if result[FAILURE]:
            self._fail(stage, result[FAILURE])
        else:
            collect(self._plan, self._store, stage)
            self._queue.commit(stage, result[TOOK_S])
            self._claims.release(stage.key)
            self.done.append(stage.key)
            self._tell("finished", stage)
        self._start_next(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Start a stage again whose processes died, or record what it could not record itself."""
        left = self._unfinished(trial)
        innocent = left if head_is_silent() else left[1:]  # the whole cluster may be gone
        for stage in innocent:
            self._give_back(stage)
        for stage in left[: len(left) - len(innocent)]:
            cause = error_of(trial)
            if self._losses.forgives(stage.key, cause):
                self._give_back(stage)
                self._tell("lost", stage, message=why_lost(cause))
            else:
                self._lose(stage, why_lost(cause))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that Tune itself starts a stage again: its node was preempted, as announced."""
        for stage in self._unfinished(trial)[:1]:
            self._tell("lost", stage, message=why_lost(error_of(trial)))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Pass on the progress of running stages, about once a second."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        self._driver.record()
        notes = self._store.progress()
        for stage in self._queue.running:
            note = notes.get(stage.key)
            # a note of the same time was reported already
            if note is None or self._noted.get(stage.key) == note["time"]:
                continue
            self._noted[stage.key] = note["time"]
            self._tell("progress", stage, progress=Throughput.from_note(note))

    def left_to(self, stage: Stage, driver: str) -> None:
        """Say once that another driver makes a stage."""
        if stage.key not in self._told_elsewhere:
            self._told_elsewhere.add(stage.key)
            self._tell("elsewhere", stage, message=self._claims.who(driver))

    def taken_over(self, stage: Stage) -> None:
        """Kill the process that builds what is now another driver's; its other stages wait."""
        self._store.clear_progress(stage.artifact)
        logger.warning(
            "%s was taken over by another driver, which had not heard of this one for %.0f s: "
            "it is stopped here",
            *(stage.caption, self._plan.launch.claim_lease_s),
        )
        trial = self._trials.get(stage.key)
        if trial is not None:
            for other in self._unfinished(trial):
                self._give_back(other)
            kill_process_of(trial)

    def committed_elsewhere(self, stage: Stage) -> None:
        """Collect the rows of a stage that another driver made."""
        collect(self._plan, self._store, stage)
        self._queue.commit(stage)
        self.skipped.append(stage.key)
        self._tell("skipped", stage)

    def failed_elsewhere(self, stage: Stage, message: str) -> None:
        """Give up a stage that failed for another driver, and what needs it."""
        self._fail(stage, message)

    def forget_the_running(self) -> None:
        """Remove the progress notes of stages that an interrupted sweep leaves unfinished."""
        for stage in self._queue.running:
            self._store.clear_progress(stage.artifact)

    def _lose(self, stage: Stage, reason: str) -> None:
        error = StageLostError(reason)
        self._store.record_failure(stage.artifact, failure_note(error))
        self._fail(stage, f"{type(error).__name__}: {error}")

    def _fail(self, stage: Stage, message: str) -> None:
        self._store.clear_progress(stage.artifact)
        self.failed[stage.key] = message
        self._tell("failed", stage, message=message)
        for child in self._queue.fail(stage):
            error = ParentFailedError(f"parent failed: {stage.artifact.folder}: {message}")
            self._store.record_failure(child.artifact, failure_note(error))
            self.failed[child.key] = str(error)
            self._tell("failed", child, message=str(error))
        self._claims.release(stage.key)  # last: the next driver must see that it failed

    def _give_back(self, stage: Stage) -> None:
        self._queue.take_back(stage)
        self._claims.release(stage.key)

    def _unfinished(self, trial: Any) -> list[Stage]:
        # the first of them runs
        keys = (key for key in trial.config[STAGES] if self._queue.is_running(key))
        return [self._plan.stages[key] for key in keys]

    def _start_next(self, trial: Any) -> None:
        for stage in self._unfinished(trial)[:1]:
            if stage.key not in self._started:
                self._started[stage.key] = time.monotonic()
                self._tell("started", stage)

    def _tell(
        self, kind: EventKind, stage: Stage, progress: Throughput | None = None, message: str = ""
    ) -> None:
        started = self._started.get(stage.key)
        wall_s = time.monotonic() - started if started is not None else 0.0
        self._driver.on_event(SweepEvent(kind, stage, wall_s, progress, message))
