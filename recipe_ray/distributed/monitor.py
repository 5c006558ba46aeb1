"""What the driver of a sweep tells those who watch it: the caller's events, its lease, metrics.

The content of the lease is asked for at each renewal (`store/claims.py`). Metrics are on Ray's
Prometheus endpoints, and so on its dashboard. Ray prefixes the names with `ray_`. Each node exports
those of its processes about every ten seconds, and forgets a gauge that was not set for twenty.
docs/watching.md has the queries.
"""

import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from recipe_ray.experiment.plan import Plan
from recipe_ray.learn.progress import Sometimes, Throughput
from recipe_ray.schedule.sweep_progress import SweepEvent, SweepProgress, at_work
from recipe_ray.stages.stage import Stage

_RECORD_EVERY_S = 1.0
_STAGE_TAGS = ("experiment", "kind", "stage")
_SECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 30_000.0]


def show_stage(stage: Stage) -> None:
    """Let `ps`, `top` and Ray's dashboard show which stage this process of Ray runs.

    Ray gives the process its own title back when the task ends.
    """
    raylet: Any = ray._raylet  # untyped
    raylet.setproctitle(f"ray::{stage.caption}")


@cache
def _instruments() -> dict[str, Any]:
    # made once per process, if Ray runs: a trial's process serves many stages
    return {
        "samples": Counter("recipe_samples", "Samples trained on.", tag_keys=_STAGE_TAGS),
        "rate": Gauge("recipe_samples_per_second", "Speed of a stage.", tag_keys=_STAGE_TAGS),
        "progress": Gauge("recipe_progress", "Share of steps done.", tag_keys=_STAGE_TAGS),
        "loss": Gauge("recipe_loss", "A loss term.", tag_keys=(*_STAGE_TAGS, "term")),
        "stages": Gauge("recipe_stages", "Stages by state.", tag_keys=("experiment", "state")),
        "seconds": Histogram(
            "recipe_stage_seconds",
            "Wall time of finished stages.",
            boundaries=_SECONDS,
            tag_keys=("experiment", "kind"),
        ),
    }


class StageMetrics:
    """Observes one stage, in the process that runs it; records about once a second."""

    def __init__(self, stage: Stage, experiment: str) -> None:
        artifact = stage.artifact
        name = f"{artifact.label}-{artifact.key}"
        self._tags = {"experiment": experiment, "kind": stage.name, "stage": name}
        self._records = Sometimes(_RECORD_EVERY_S)
        self._samples = 0

    def __call__(self, advance: Throughput) -> None:
        progress, found = advance.progress, _instruments()
        self._samples += progress.samples
        if not self._records.due(progress):
            return
        if self._samples:
            found["samples"].inc(self._samples, self._tags)
            self._samples = 0
        if advance.samples_per_s is not None:
            found["rate"].set(advance.samples_per_s, self._tags)
        found["progress"].set(progress.step / progress.num_steps, self._tags)
        for term, value in progress.values.items():
            found["loss"].set(value, {**self._tags, "term": term})


def record_states(experiment: str, states: Mapping[str, int]) -> None:
    """Set how many stages of a sweep are in each state, from its driver, if Ray runs."""
    if not ray.is_initialized():
        return
    for state, count in states.items():
        _instruments()["stages"].set(count, {"experiment": experiment, "state": state})


def record_finished(experiment: str, kind: str, wall_s: float) -> None:
    """Count a finished stage and its seconds, from the driver, if Ray runs."""
    if ray.is_initialized():
        tags = {"experiment": experiment, "kind": kind}
        _instruments()["seconds"].observe(wall_s, tags)


_ESTIMATE_EVERY_S = 2.0
_STATES_EVERY_S = 5.0  # less than Ray's 20 s, after which it forgets a gauge


class Monitor:
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
        self._tally = SweepProgress(plan, done)
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
        # not at every event: it reads all stages that are left, which may be thousands
        now = time.monotonic()
        if now - self._estimated >= _ESTIMATE_EVERY_S:
            self._estimated = now
            self._left_s = self._tally.left_s()

    def note(self) -> dict[str, Any]:
        """Return what the driver's lease says: how far the sweep is, and what runs."""
        with self._lock:
            self._estimate()
            running = at_work(self._tally.running())
            counts = {"cells": self._tally.cells, "cells_done": self._tally.cells_done}
            states, left_s = self._tally.states(), self._left_s
            idle_s = round(self._tally.idle_s(), 1)
        return {
            "experiment": self._plan.name,
            **counts,
            "counted": "stages",
            "states": states,
            "left_s": left_s,
            "idle_s": idle_s,
            "running": running,
        }
