"""Metrics on Ray's Prometheus endpoints, and so on its dashboard: speed, losses, stage states.

Ray prefixes the names with `ray_`, each node exports those of its processes about every ten
seconds, and forgets a gauge that was not set for twenty. docs/watching.md has the queries.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from recipe_ray.stages.advance import Advance, Sometimes
from recipe_ray.stages.stage import Stage

_RECORD_EVERY_S = 1.0
_STAGE_TAGS = ("experiment", "kind", "stage")
_SECONDS = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 30_000.0]


@cache
def _instruments() -> dict[str, Any]:
    # made once a process, where Ray runs: a trial's process serves many stages
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

    def __call__(self, advance: Advance) -> None:
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
    """Set how many stages of a sweep are in each state, from its driver, where Ray runs."""
    if not ray.is_initialized():
        return
    for state, count in states.items():
        _instruments()["stages"].set(count, {"experiment": experiment, "state": state})


def record_finished(experiment: str, kind: str, wall_s: float) -> None:
    """Count a finished stage and its seconds, from the driver, where Ray runs."""
    if ray.is_initialized():
        tags = {"experiment": experiment, "kind": kind}
        _instruments()["seconds"].observe(wall_s, tags)
