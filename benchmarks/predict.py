"""The forecast against a real sweep: `predict_error`, to be within 20 %.

A first sweep of one seed, in a store of its own, is what stage times are taken from. From them the
sweep of all seeds in an empty store is forecast, then run; both start their own Ray, on all cores
of this machine. The sweep's time is from its call to its return. BENCHMARK_QUICK=1 shortens the
stages: to try it, not to quote.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.contenders import Figure, data_folder
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.experiment.spec import Experiment
from recipe_ray.schedule.durations import stage_seconds
from recipe_ray.schedule.forecast import forecast
from recipe_ray.schedule.resources import ClusterSpec
from recipe_ray.store.store import Store

QUICK = bool(os.environ.get("BENCHMARK_QUICK"))
ROUNDS = 1 if QUICK else 3
SEEDS = (0, 1, 2)
FIT = {"steps": 20 if QUICK else 120, "max_length": 64}
TEXTS = {"name": "bookcorpus", "size": 2000}
CORES = len(os.sched_getaffinity(0))


def figures() -> list[Figure]:
    """Measure, forecast, and measure what was forecast."""
    whole = plan_of(SEEDS)
    predicted, measured = [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            _swept(SEEDS[:1], first)
            predicted.append(_forecast(whole, Store.open(first)))
            measured.append(_swept(SEEDS, second))
    errors = [100 * (p / m - 1) for p, m in zip(predicted, measured, strict=True)]
    return [
        Figure("predict_stages", [float(len(whole.stages))], "stages"),
        Figure("predict_forecast", predicted, "s"),
        Figure("predict_sweep", measured, "s"),
        Figure("predict_error", errors, "%"),
    ]


def plan_of(seeds: tuple[int, ...]) -> Plan:
    """Return a plan of two PTMs, as they are and purified, each fine-tuned with these seeds."""
    grid: dict[str, Any] = {
        "models": [{"name": "minilm", "layers": 3}],
        "attacks": ["none", {"name": "por", "corpus": TEXTS, "fit": FIT}],
        "defenses": ["none", {"name": "recipe", "fit": FIT}],
        "auxiliaries": [TEXTS],
        "tasks": [{"name": "sst2", "train_size": 640, "test_size": 100}],
        "seeds": seeds,
    }
    how = {"pretraining": {"corpus": TEXTS, "fit": FIT}, "finetuning": FIT}
    values = {"name": "predict", "grid": grid, **how}
    return make_plan(Experiment.model_validate(values), Locations.from_environment(data_folder()))


def _forecast(plan: Plan, store: Store) -> float:
    here = ClusterSpec.model_validate({"nodes": [{"name": "this machine", "cpus": CORES}]})
    return forecast(plan, here, stage_seconds(plan, here, store, ()), ()).makespan_s


def _swept(seeds: tuple[int, ...], store: str) -> float:
    command = [sys.executable, "-m", "benchmarks.predict", json.dumps([seeds, store])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    return float(done.stdout.splitlines()[-1])


def _sweep(seeds: list[int], store: str) -> float:
    from recipe_ray.distributed.sweep import sweep

    plan = plan_of(tuple(seeds))
    began = time.perf_counter()
    outcome = sweep(plan, Store.open(Path(store)), Locations.from_environment(data_folder()))
    if outcome.failed:
        raise RuntimeError(f"a measured stage failed: {outcome.failed}")
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.stdout.write(f"{_sweep(*json.loads(sys.argv[1]))}\n")
