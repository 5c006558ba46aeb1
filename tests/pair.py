"""Two processes that train together, for all tests of a session that compare them with one."""

import io
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any


class Pair:
    """Two workers of one gloo group; importing torch and more takes each of them seconds."""

    def __init__(self, meeting: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pools = [
            ProcessPoolExecutor(1, context, initializer=_meet, initargs=(rank, str(meeting)))
            for rank in (0, 1)
        ]

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Call a module-level function with each worker's runtime; return what each returned."""
        asked = [pool.submit(_called, function, arguments) for pool in self._pools]
        return [_loaded(one.result(timeout=250)) for one in asked]

    def close(self) -> None:
        """End both processes."""
        for pool in self._pools:
            pool.shutdown()


def _meet(rank: int, meeting: str) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=100),
    )


def _called(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    import torch

    from recipe_ray.learn.runtime import ProcessGroupRuntime

    found = io.BytesIO()
    torch.save(function(ProcessGroupRuntime(), *arguments), found)
    return found.getvalue()


def _loaded(found: bytes) -> Any:
    import torch

    return torch.load(io.BytesIO(found), weights_only=False)
