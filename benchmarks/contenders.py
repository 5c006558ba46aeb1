"""Contenders: processes that stay alive and are timed in turns, so that ratios share the weather.

A contender is one process, or several that form a process group. Its rank 0 answers each request
with what the built function returned. Other load on the machine then hits all of them alike.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch
import torch.distributed as dist


def data_folder() -> Path:
    """Return the folder of real data sets that RECIPE_RAY_DATA names; raise SystemExit without."""
    folder = Path(os.environ.get("RECIPE_RAY_DATA") or "")
    if not os.environ.get("RECIPE_RAY_DATA") or not folder.is_dir():
        raise SystemExit("set RECIPE_RAY_DATA to a folder of data sets (docs/benchmarks.md)")
    return folder


# made in the worker; each call does one measurement and returns a rate
Measure = Callable[[], float]


@dataclass(frozen=True)
class Figure:
    """One number of the report: its repeats and their unit."""

    name: str
    values: Sequence[float]
    unit: str

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        return f"{self.name}: {median(self.values):.3g} ({low:.3g}-{high:.3g}) {self.unit}"


class Contender:
    """Processes running one `Measure`; a context that ends them."""

    def __init__(self, build: Callable[[], Measure], *, workers: int, threads: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for rank in range(workers):
            ours, theirs = self._context.Pipe()
            place = (rank, workers, threads, f"file://{self._folder.name}/group")
            process = self._context.Process(
                target=_serve, args=(theirs, build, *place), daemon=True
            )
            process.start()
            theirs.close()  # so that a worker's death ends our wait for its answer
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def __call__(self) -> float:
        """Do one measurement; return rank 0's answer."""
        for pipe in self._pipes:
            pipe.send(True)
        answers: list[float] = [pipe.recv() for pipe in self._pipes]
        return answers[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.send(False)
        for process in self._processes:
            process.join(timeout=30)
        self._folder.cleanup()


def interleave(
    contenders: dict[str, Callable[[], Contender]], rounds: int
) -> dict[str, list[float]]:
    """Start all contenders, measure them in turns `rounds` times, return each one's rates."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        running = {name: stack.enter_context(start()) for name, start in contenders.items()}
        for _ in range(rounds):
            for name, contender in running.items():
                rates[name].append(contender())
    return rates


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the quotient of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def _serve(
    pipe: Connection, build: Callable[[], Measure], rank: int, workers: int, threads: int, init: str
) -> None:
    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if workers > 1:
        dist.init_process_group("gloo", init_method=init, rank=rank, world_size=workers)
    measure = build()
    pipe.send(0.0)
    while pipe.recv():
        pipe.send(measure())
    if workers > 1:
        dist.destroy_process_group()
