"""Tune's schedulers, mended in what Tune does between trials, of which they are told at every turn.

A trial whose process is on its way is left alone. Tune's own choice of the next trial is the first
that waits. It is given the next process that becomes free, and its own, still starting, is killed.
Where trials end more often than a process takes to start, no process beyond those that were there
first ever came up: nodes that joined later stood idle. Without a choice Tune gives a free process
to the first trial that has none coming.

A process that has nothing to run ends, and its CPUs are free for others. Tune keeps it for the next
trial. If there is none yet it waits up to ten minutes in which it looks at nothing else. Of two
drivers on one cluster, each then waited for what the other had claimed and found no CPU for.
"""

import time
from functools import cached_property
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

IDLE_S = 5.0  # twice what a new process takes to start
_ASK_EVERY_S = 0.5


class IdleProcesses:
    """The processes that Tune keeps for trials to come, and since when each has had none."""

    def __init__(self) -> None:
        self._since: dict[Any, float] = {}

    def watch(self, wrapped: Any) -> None:
        """Look after the processes of the Tune that a scheduler is given."""
        tune = wrapped._tune_controller
        tune.__class__ = _Attentive
        self.give_back(tune)

    def give_back(self, tune: Any) -> None:
        """End them all as soon as one has been idle for `IDLE_S`."""
        now = time.monotonic()
        kept = [actor for actors in tune._actor_cache._cached_objects.values() for actor in actors]
        self._since = {actor: self._since.get(actor, now) for actor in kept}
        if any(now - since >= IDLE_S for since in self._since.values()):
            tune._cleanup_cached_actors(force_all=True)
            self._since = {}


class _Attentive(TuneController):
    """Tune's loop, that lets go of idle processes also while it waits for a trial."""

    def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool:
        tune: Any = self
        give_up_at = time.monotonic() + timeout
        while not super()._update_trial_queue(blocking=False):
            if not blocking or tune.is_finished() or time.monotonic() > give_up_at:
                return False
            tune._scheduler_alg.idle.give_back(tune)
            if not tune._actor_manager.next(timeout=_ASK_EVERY_S):
                time.sleep(_ASK_EVERY_S)  # it does not wait if there is nothing to wait for
            tune._cleanup_stopping_actors()
            tune._callbacks.on_step_end(iteration=tune._iteration, trials=tune.get_trials())
        return True


class InOrder(FIFOScheduler):
    """Runs trials to their end, in the order in which they came."""

    @cached_property
    def idle(self) -> IdleProcesses:
        """What Tune keeps and may not need."""
        return IdleProcesses()

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none."""
        self.idle.watch(tune_controller)


class Halving(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020): at each rung the best part goes on."""

    @cached_property
    def idle(self) -> IdleProcesses:
        """What Tune keeps and may not need."""
        return IdleProcesses()

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none."""
        self.idle.watch(tune_controller)
