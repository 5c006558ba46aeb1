"""The trackers of one sweep, held so that they cannot hurt it."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

import typer

from recipe_ray.distributed.events import SweepEvent
from recipe_ray.report.trackers import Tracker
from recipe_ray.stages.store import Store


class Tracking:
    """Tells trackers of finished stages; one that fails is dropped with one warning.

    It is not told again, because each attempt at a dead server holds up the sweep.
    """

    def __init__(self, trackers: dict[str, Tracker], store: Store) -> None:
        self._trackers = dict(trackers)
        self._store = store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._each(lambda tracker: tracker.close())

    def on_event(self, event: SweepEvent) -> None:
        """Log the rows of a stage that has just finished."""
        if event.kind == "finished":
            stage = event.stage
            self._each(lambda tracker: tracker.log(stage, self._store.rows(stage.artifact)))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tell(tracker)
            except Exception as error:
                del self._trackers[name]
                problem = f"{type(error).__name__}: {error}"
                typer.secho(
                    f"warning: --track {name} stopped, the sweep goes on; results stay in the "
                    f"store ({problem})",
                    fg="yellow",
                    err=True,
                )
