"""The agenda as a Tune search algorithm: Tune asks for the next trial, the agenda answers."""

from typing import Any

from ray.tune.search import Searcher

from recipe_ray.distributed.trial import STAGES
from recipe_ray.experiment.agenda import Agenda


class StageSearcher(Searcher):
    """Suggests a stage as soon as it may start; says "not yet" otherwise, and when it is over."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__()
        self._agenda = agenda

    def suggest(self, trial_id: str) -> Any:
        """Return the keys of the next stages, None for "ask again later", or FINISHED."""
        if self._agenda.is_over:
            return Searcher.FINISHED
        batch = self._agenda.next_batch()
        return {STAGES: [stage.key for stage in batch]} if batch else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the sweep's callback keeps the agenda, since it also sees the reason."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the store is the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the store is the ledger."""
