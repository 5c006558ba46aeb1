"""Tune's schedulers, mended: a trial whose process is on its way is left alone.

Tune's own choice of the next trial is the first that waits. It is given the next process that
becomes free, and its own, still starting, is killed. Where trials end more often than a process
takes to start, no process beyond those that were there first ever came up: nodes that joined later
stood idle. Without a choice Tune gives a free process to the first trial that has none coming.
"""

from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler


class InOrder(FIFOScheduler):
    """Runs trials to their end, in the order in which they came."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none."""


class Halving(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020): at each rung the best part goes on."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none."""
