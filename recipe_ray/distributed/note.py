"""The store's note of whoever drives something on it, renewed while it lives."""

import logging
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from recipe_ray.base.errors import StoreError
from recipe_ray.stages.drivers import BEAT_S, DriverNotes
from recipe_ray.stages.store import Store

logger = logging.getLogger("recipe_ray")


@contextmanager
def kept_note(
    store: Store, experiment: str, content: Callable[[], dict[str, Any]]
) -> Iterator[None]:
    """Keep the note in the store while the context lasts.

    A thread renews it, also where Ray keeps the driver waiting; `content` is called there.
    """
    notes, driver, over = DriverNotes(store), uuid4().hex[:12], threading.Event()
    started = datetime.now(UTC).isoformat()
    who = {"experiment": experiment, "host": platform.node(), "pid": os.getpid()}

    def write() -> None:
        notes.write(driver, {**who, "started": started, **content()})

    def renew() -> None:
        while not over.wait(BEAT_S):
            try:
                write()
            except StoreError as problem:  # those who watch wait; a sweep has its own retries
                logger.warning("the note of this driver could not be renewed: %s", problem)

    notes.remove_dead(experiment)
    write()
    thread = threading.Thread(target=renew, name="driver-note", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(BEAT_S)  # no longer: the store may be slow to fail
        try:
            notes.remove(driver)
        except StoreError as problem:  # the note goes stale by itself
            logger.warning("the note of this driver stays: %s", problem)
