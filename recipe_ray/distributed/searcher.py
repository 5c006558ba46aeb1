"""The agenda as a Tune search algorithm: Tune asks for the next trial, the agenda answers.

It is asked through `Neighbours`, which knows what other drivers are at.
"""

from typing import Any

from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from recipe_ray.distributed.neighbours import Neighbours
from recipe_ray.distributed.trial import STAGES


class StageSearcher(Searcher):
    """Suggests a stage as soon as it may start; says "not yet" otherwise, and when it is over."""

    def __init__(self, neighbours: Neighbours) -> None:
        super().__init__()
        self._neighbours = neighbours

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles it for restoring, which the store does, and cannot."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return the keys of the next stages, None for "ask again later", or FINISHED."""
        if batch := self._neighbours.next_batch():
            return {STAGES: [stage.key for stage in batch]}
        return Searcher.FINISHED if self._neighbours.is_over else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the sweep's callback keeps the agenda, since it also sees the reason."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the store is the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the store is the ledger."""


class LeaveStarting(FIFOScheduler):
    """Leaves a trial alone whose process is on its way.

    Tune's own choice is the first trial that waits. It is given the next process that becomes free,
    and its own, still starting, is killed. Where stages end more often than a process takes to
    start, no process beyond those that were there first ever came up: nodes that joined later stood
    idle. Without a choice Tune gives a free process to the first trial that has none coming.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none."""
