"""The store's note of whoever drives something on it, renewed while it lives."""

import logging
import os
import platform
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from recipe_ray.base.errors import StoreError
from recipe_ray.stages.drivers import BEAT_S, DriverNotes
from recipe_ray.stages.store import Store

logger = logging.getLogger("recipe_ray")


class KeptNote:
    """While it is open the store has the note; a context manager.

    A thread renews it, also where Ray keeps the driver waiting; `content` is called there.
    """

    def __init__(
        self, store: Store, experiment: str, content: Callable[[], dict[str, Any]]
    ) -> None:
        self._notes = DriverNotes(store)
        self._experiment = experiment
        self._content = content
        self._id = uuid4().hex[:12]
        self._started = datetime.now(UTC).isoformat()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="driver-note", daemon=True)

    def __enter__(self) -> Self:
        self._notes.remove_dead(self._experiment)
        self._notes.write(self._id, self._note())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join(BEAT_S)  # no longer: the store may be slow to fail
        try:
            self._notes.remove(self._id)
        except StoreError as problem:  # the note goes stale by itself
            logger.warning("the note of this driver stays: %s", problem)

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self._notes.write(self._id, self._note())
            except StoreError as problem:  # those who watch wait; a sweep has its own retries
                logger.warning("the note of this driver could not be renewed: %s", problem)

    def _note(self) -> dict[str, Any]:
        who = {"host": platform.node(), "pid": os.getpid(), "started": self._started}
        return {"experiment": self._experiment, **who, **self._content()}
