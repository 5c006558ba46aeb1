"""Settled trials as Tune search algorithms: Tune asks for the next one, and is told."""

from typing import Any

from ray.tune.search import Searcher

from recipe_ray.distributed.neighbours import Neighbours
from recipe_ray.distributed.trial import STAGES


class SettledSearcher(Searcher):
    """Suggests what no score decides; neither saved nor restored, the store is the ledger."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles it for restoring, which the store does."""
        return {}

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Take no notice of scores."""
        return True

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: what comes next is settled, or known by a callback that sees the reason."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class StageSearcher(SettledSearcher):
    """Suggests a stage as soon as it may start; says "not yet" otherwise, and when it is over.

    The agenda is asked through `Neighbours`, which knows what other drivers are at.
    """

    def __init__(self, neighbours: Neighbours) -> None:
        super().__init__()
        self._neighbours = neighbours

    def suggest(self, trial_id: str) -> Any:
        """Return the keys of the next stages, None for "ask again later", or FINISHED."""
        if batch := self._neighbours.next_batch():
            return {STAGES: [stage.key for stage in batch]}
        return Searcher.FINISHED if self._neighbours.is_over else None
