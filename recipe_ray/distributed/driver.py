"""The driver of a sweep to those who watch it: the caller's events, the store's note, metrics."""

import logging
import os
import platform
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from recipe_ray.base.errors import StoreError
from recipe_ray.distributed.events import SweepEvent
from recipe_ray.distributed.metrics import record_finished, record_states
from recipe_ray.distributed.tally import Tally
from recipe_ray.experiment.plan import Plan
from recipe_ray.stages.drivers import BEAT_S, DriverNotes
from recipe_ray.stages.store import Store

logger = logging.getLogger("recipe_ray")
_ESTIMATE_EVERY_S = 2.0
_STATES_EVERY_S = 5.0  # less than Ray's 20 s, after which it forgets a gauge


class Driver:
    """Hears every event of a sweep and passes it on, with the time to go; a context manager.

    While it is open the store has its note, renewed by a thread also where Ray keeps the driver
    waiting. Events come from the thread in which Ray runs, and metrics are recorded there.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        done: Collection[str],
        on_event: Callable[[SweepEvent], None] | None,
    ) -> None:
        self._plan = plan
        self._notes = DriverNotes(store)
        self._on_event = on_event
        self._tally = Tally(plan, done)
        self._lock = threading.Lock()
        self._id = uuid4().hex[:12]
        self._started = datetime.now(UTC).isoformat()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="driver-note", daemon=True)
        self._left_s: float | None = None
        self._estimated = self._stated = float("-inf")

    def __enter__(self) -> Self:
        self._notes.remove_dead(self._plan.name)
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

    def on_event(self, event: SweepEvent) -> None:
        """Count an event, record it and pass it on."""
        with self._lock:
            self._tally.see(event)
            self._estimate()
        if event.kind == "finished":
            record_finished(self._plan.name, event.stage.name, event.wall_s)
        if event.kind != "progress":
            self._stated = float("-inf")
        self.record()
        if self._on_event is not None:
            self._on_event(replace(event, left_s=self._left_s))

    def record(self) -> None:
        """Record the stages' states, every few seconds; from the thread in which Ray runs."""
        now = time.monotonic()
        if now - self._stated >= _STATES_EVERY_S:
            self._stated = now
            record_states(self._plan.name, self._tally.states())

    def _estimate(self) -> None:
        # not at every event: it looks at all stages that are left, of which there may be thousands
        now = time.monotonic()
        if now - self._estimated >= _ESTIMATE_EVERY_S:
            self._estimated = now
            self._left_s = self._tally.left_s()

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            try:
                self._notes.write(self._id, self._note())
            except StoreError as problem:  # those who watch wait; the sweep has its own retries
                logger.warning("the note of this driver could not be renewed: %s", problem)

    def _note(self) -> dict[str, Any]:
        with self._lock:
            self._estimate()
            running = [
                {"key": s.key, "kind": s.name, "label": s.label(), "running_s": round(running_s, 1)}
                for s, running_s in self._tally.running()
            ]
            counts = {"cells": self._tally.cells, "cells_done": self._tally.cells_done}
            states, left_s = self._tally.states(), self._left_s
        return {
            "experiment": self._plan.name,
            "host": platform.node(),
            "pid": os.getpid(),
            "started": self._started,
            **counts,
            "states": states,
            "left_s": left_s,
            "running": running,
        }
