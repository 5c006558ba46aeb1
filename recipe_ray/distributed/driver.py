"""The driver of a sweep to those who watch it: the caller's events, the store's note, metrics."""

import threading
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from recipe_ray.distributed.events import SweepEvent
from recipe_ray.distributed.metrics import record_finished, record_states
from recipe_ray.distributed.tally import Tally
from recipe_ray.experiment.plan import Plan
from recipe_ray.stages.drivers import at_work

_ESTIMATE_EVERY_S = 2.0
_STATES_EVERY_S = 5.0  # less than Ray's 20 s, after which it forgets a gauge


class Driver:
    """Hears every event of a sweep and passes it on, with the time to go.

    Events come from the thread in which Ray runs, and metrics are recorded there; `note` may be
    asked for in another.
    """

    def __init__(
        self,
        plan: Plan,
        done: Collection[str],
        on_event: Callable[[SweepEvent], None] | None,
    ) -> None:
        self._plan = plan
        self._on_event = on_event
        self._tally = Tally(plan, done)
        self._lock = threading.Lock()
        self._left_s: float | None = None
        self._estimated = self._stated = float("-inf")

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

    def note(self) -> dict[str, Any]:
        """Return what the store's note says: how far the sweep is, and what runs."""
        with self._lock:
            self._estimate()
            running = at_work(self._tally.running())
            counts = {"cells": self._tally.cells, "cells_done": self._tally.cells_done}
            states, left_s = self._tally.states(), self._left_s
            idle_s = round(self._tally.idle_s(), 1)
        return {
            **counts,
            "counted": "stages",
            "states": states,
            "left_s": left_s,
            "idle_s": idle_s,
            "running": running,
        }
