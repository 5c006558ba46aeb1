"""What Ray costs: a stage, its start, a grid; and which placement of workers is the faster.

Every measurement is a fresh process (`python -m benchmarks.ray_overhead REQUEST`) on a store of its
own, Ray and plain in turns. BENCHMARK_QUICK=1 shortens the stages: to try it, not to quote.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.contenders import Figure, data_folder
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.experiment.spec import Experiment
from recipe_ray.stages.run import LOG_FILE
from recipe_ray.store.store import Store

QUICK = bool(os.environ.get("BENCHMARK_QUICK"))
ROUNDS = 2 if QUICK else 3
# of RECIPE on MiniLM: a stage of about three minutes on one core, or of a few seconds
STAGE_STEPS = 40 if QUICK else 725
PLACEMENT_STEPS = 40 if QUICK else 250
SHORT = {"steps": 5 if QUICK else 40, "max_length": 64}
SIZES = {"train_size": 640, "test_size": 64 if QUICK else 320}
GRID_SEEDS = tuple(range(4 if QUICK else 12))


def figures() -> list[Figure]:
    """Measure the overheads and the placements."""
    return [*ray_stage_overhead(), *ray_grid_overhead(), *placements()]


def ray_stage_overhead() -> list[Figure]:
    """One purification as a Tune trial against the same without Ray, one thread each.

    `ray_worker_start`: from the call of `sweep`, with Ray started for it, to the stage's first
    line; `ray_first_batch`: from there to the end of the first step, loading and tokenising too.
    """
    grid = {**_GRID, "defenses": [{"name": "recipe", "fit": {"steps": STAGE_STEPS}}]}
    purify = (_experiment(grid), "purify")
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(Path(folder), grid)
        plain, trial, nested = [], [], []
        for _ in range(ROUNDS):
            plain.append(_measure("plain", *purify, prepared))
            trial.append(_measure("sweep", *purify, prepared))
            two = _experiment(grid, workers={"purify": 2})
            nested.append(_measure("sweep", two, "purify", prepared))
    return [
        Figure("ray_stage_length", [run["stage_s"] for run in plain], "s"),
        Figure("ray_stage_overhead", _more(trial, plain, "stage_s"), "%"),
        Figure("ray_worker_start", [run["start_s"] for run in trial], "s"),
        Figure("ray_first_batch", [run["first_batch_s"] for run in trial], "s"),
        Figure("plain_first_batch", [run["first_batch_s"] for run in plain], "s"),
        Figure("ray_two_workers_start", [run["start_s"] for run in nested], "s"),
        Figure("ray_two_workers_first_batch", [run["first_batch_s"] for run in nested], "s"),
    ]


def ray_grid_overhead() -> list[Figure]:
    """Many short fine-tunings in one sweep against a bare loop, fresh processes, start included.

    The loop has all cores as threads; the sweep has as many trials of one thread.
    """
    grid = {**_GRID, "seeds": GRID_SEEDS}
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(Path(folder), grid)
        plain, swept = [], []
        for _ in range(ROUNDS):
            plain.append(_measure("plain", _experiment(grid), "finetune", prepared, _cores()))
            swept.append(_measure("sweep", _experiment(grid), "finetune", prepared))
    return [
        Figure("ray_grid_plain", [run["process_s"] for run in plain], "s"),
        Figure("ray_grid_sweep", [run["process_s"] for run in swept], "s"),
        Figure("ray_grid_overhead", _more(swept, plain, "process_s"), "%"),
    ]


def placements() -> list[Figure]:
    """The same two cores: DDP workers or threads for a stage, side by side or in turn for two."""
    purify = {**_GRID, "defenses": [{"name": "recipe", "fit": {"steps": PLACEMENT_STEPS}}]}
    pair = {**_GRID, "seeds": (0, 1)}
    cases = {
        "placement_purify_two_workers": (_experiment(purify, workers={"purify": 2}), "purify"),
        "placement_purify_two_threads": (_experiment(purify, cpus_per_worker=2), "purify"),
        "placement_two_finetunes_side_by_side": (_experiment(pair), "finetune"),
        "placement_two_finetunes_in_turn": (_experiment(pair, cpus_per_worker=2), "finetune"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(Path(folder), pair)
        for _ in range(ROUNDS):
            for name, case in cases.items():
                seconds[name].append(_measure("sweep", *case, prepared)["work_s"])
    return [Figure(name, values, "s") for name, values in seconds.items()]


_GRID: dict[str, Any] = {
    "models": [{"name": "minilm", "layers": 6}],
    "attacks": ["none"],
    "tasks": [{"name": "sst2", **SIZES}],
}


def _experiment(grid: dict[str, Any], **launch: Any) -> dict[str, Any]:
    return {
        "name": "overhead",
        "pretraining": {"fit": {"steps": 5}},
        "finetuning": SHORT,
        "grid": grid,
        "launch": launch,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _more(above: list[dict[str, float]], below: list[dict[str, float]], what: str) -> list[float]:
    pairs = zip(above, below, strict=True)
    return [100 * (ours[what] / theirs[what] - 1) for ours, theirs in pairs]


def _prepared(folder: Path, grid: dict[str, Any]) -> Path:
    """Return a store that holds what the measured stages start from."""
    _ask(
        {"how": "plain", "experiment": _experiment(grid), "kind": "pretrain", "store": str(folder)}
    )
    return folder


def _measure(
    how: str, experiment: dict[str, Any], kind: str, prepared: Path, threads: int = 1
) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        store = shutil.copytree(prepared, Path(folder) / "store")
        request = {"how": how, "experiment": experiment, "kind": kind, "store": str(store)}
        begun = time.perf_counter()
        answer = _ask(request, threads)
        answer["process_s"] = time.perf_counter() - begun
    return answer


def _ask(request: dict[str, Any], threads: int = 1) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.ray_overhead", json.dumps(request)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _answer(request: dict[str, Any]) -> dict[str, float]:
    """Do one request in this process; return when its stages began and ended."""
    locations = Locations.from_environment(data_folder())
    whole = make_plan(Experiment.model_validate(request["experiment"]), locations)
    stages = {key: stage for key, stage in whole.stages.items() if stage.name == request["kind"]}
    store = Store.open(request["store"])
    begun = time.time()
    spans = _HOW[request["how"]](replace(whole, cells=(), stages=stages), store, locations)
    first = store.fetch(next(iter(stages.values())).artifact) / LOG_FILE
    entered, stepped = _moments(first.read_text().splitlines())
    return {
        "stage_s": max(end - start for start, end in spans),
        "work_s": max(end for _, end in spans) - min(start for start, _ in spans),
        "start_s": entered - begun,
        "first_batch_s": stepped - entered,
    }


def _plain(plan: Plan, store: Store, locations: Locations) -> list[tuple[float, float]]:
    from recipe_ray.experiment.collect import run_inline

    spans = []
    for stage in plan.stages.values():
        begun = time.time()
        run_inline([stage], store, locations)
        spans.append((begun, time.time()))
    return spans


def _swept(plan: Plan, store: Store, locations: Locations) -> list[tuple[float, float]]:
    from recipe_ray.distributed.sweep import SweepEvent, sweep

    spans = []

    def note(event: SweepEvent) -> None:
        if event.kind == "finished":
            spans.append((time.time() - event.wall_s, time.time()))

    outcome = sweep(plan, store, locations, on_event=note)
    if outcome.failed:
        raise RuntimeError(f"a measured stage failed: {outcome.failed}")
    return spans


def _moments(log: Iterable[str]) -> tuple[float, float]:
    """Return when the stage was entered and when its first step was done, from its log."""
    # 2026-01-31 12:00:00,123 INFO purify 1/40 ...: the first step is always logged
    times = [datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp() for line in log]
    return times[0], times[1]


_HOW = {"plain": _plain, "sweep": _swept}

if __name__ == "__main__":
    sys.stdout.write(json.dumps(_answer(json.loads(sys.argv[1]))) + "\n")
