"""What watching costs a training: microseconds a step, of everything that hears of its progress.

`watching_step` is one report to the meter, the store's note, the event file and (where Ray runs)
its metrics, at a thousand steps a second and more; most reports find that nothing is due.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.contenders import Figure
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.cluster import connected
from recipe_ray.distributed.monitor import StageMetrics
from recipe_ray.experiment.plan import make_plan
from recipe_ray.experiment.spec import Experiment, Launch
from recipe_ray.learn.progress import Observers, Progress
from recipe_ray.stages.run import ProgressNotes
from recipe_ray.stages.stage import Stage
from recipe_ray.stages.tensorboard import Board
from recipe_ray.store.store import Store

ROUNDS, STEPS = 5, 50_000
LOSSES = {"mlm": 2.5, "weight_norm.ffn_in": 80.0}
TEXTS = {"name": "editorials"}


def figures() -> list[Figure]:
    """Measure one report, under Ray."""
    with connected("local", Launch()), tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        return [Figure("watching_step", [_report_us(store) for _ in range(ROUNDS)], "us")]


def _report_us(store: Store) -> float:
    stage = _stage()
    with Board(store, stage, "watching") as board:
        notes, metrics = ProgressNotes(store, stage, "watching"), StageMetrics(stage, "watching")
        tell = Observers(notes, board.on_advance, metrics)
        begun = time.perf_counter()
        for step in range(1, STEPS + 1):
            tell(Progress("purify", step, STEPS + 1, LOSSES, 32))
        return 1e6 * (time.perf_counter() - begun) / STEPS


def _stage() -> Stage:
    grid = {
        "models": ["minilm"],
        "attacks": ["none"],
        "defenses": ["recipe"],
        "auxiliaries": [TEXTS],
        "tasks": ["snippets"],
    }
    values = {"name": "watching", "pretraining": {"corpus": TEXTS}, "grid": grid}
    plan = make_plan(Experiment.model_validate(values), Locations(None, Path("/nowhere")))
    return next(stage for stage in plan.stages.values() if stage.name == "purify")
