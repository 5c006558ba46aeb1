"""Grids of 100, 1,000 and 10,000 cells whose stages do nothing: cells/s and the driver's memory.

Every size is a fresh process (`python -m benchmarks.grid_scale CELLS`). `expand`: from the file's
values to cells and distinct stages with their keys; `plan`: the record for the store, the queue
and one listing of the store; `schedule`: the sweep, from the first finished stage to the last;
`start`: what comes before that, Ray's start among it. BENCHMARK_QUICK=1 leaves out 10,000: to try
it, not to quote.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.contenders import Figure
from benchmarks.noop import NOWHERE, grid_of, idle
from recipe_ray.experiment.collect import plan_record
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.schedule.resources import Capacity, demand_of
from recipe_ray.schedule.stage_queue import StageQueue
from recipe_ray.store.store import Store

SIZES = (100, 1000) if os.environ.get("BENCHMARK_QUICK") else (100, 1000, 10000)
ROUNDS = 3  # of what takes seconds; the sweep is done once


def figures() -> list[Figure]:
    """Measure every size in a process of its own."""
    found = []
    for cells in SIZES:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.grid_scale", str(cells)],
            env=worker_environment(),
            stdout=subprocess.PIPE,
            check=True,
        )
        answer = json.loads(done.stdout.splitlines()[-1])
        for name, unit in _UNITS.items():
            found.append(Figure(f"grid_{cells}_{name}", answer[name], unit))
    return found


_UNITS = {
    "expand": "cells/s",
    "plan": "cells/s",
    "schedule": "stages/s",
    "start": "s",
    "driver_peak": "MB",
    "driver_growth": "MB",  # of the peak, above the same process once all is imported
}


def worker_environment() -> dict[str, str]:
    """Return an environment in which Ray's workers can import what stands beside the package."""
    root = str(Path(__file__).parents[1])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "OMP_NUM_THREADS": "1",
    }


def measure(cells: int) -> dict[str, list[float]]:
    """Expand, plan and schedule one grid in this process."""
    from recipe_ray.distributed.sweep import sweep

    make_plan(grid_of(20), NOWHERE)  # imports, and the checksum of the embedded texts
    before = _peak_mb()
    expand, plan = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        found = make_plan(grid_of(cells), NOWHERE)
        expand.append(cells / (time.perf_counter() - began))
        began = time.perf_counter()
        _prepare(found)
        plan.append(cells / (time.perf_counter() - began))
    began, ends = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        outcome = sweep(
            idle(found),
            Store.open(folder),
            NOWHERE,
            on_event=lambda e: ends.append(time.perf_counter()) if e.kind == "finished" else None,
        )
    if outcome.failed or len(ends) != len(found.stages):
        raise RuntimeError(f"{len(ends)} of {len(found.stages)} stages done: {outcome.failed}")
    return {
        "expand": expand,
        "plan": plan,
        "schedule": [(len(ends) - 1) / (ends[-1] - ends[0])],
        "start": [ends[0] - began],
        "driver_peak": [_peak_mb()],
        "driver_growth": [_peak_mb() - before],
    }


def _prepare(plan: Plan) -> None:
    room = Capacity(2, 0, 2, 0)
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(folder)
        store.write_plan(plan.name, plan_record(plan))
        StageQueue(
            plan.stages, store.committed(), lambda s: demand_of(s, plan.launch), lambda: room
        )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(int(sys.argv[1]))) + "\n")
