"""A process whose hub clients talk to the stand-in.

The clients read HF_ENDPOINT when they are imported, so they need a process of their own.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

CLOSED = "http://127.0.0.1:9"  # the discard port: nothing answers


class Client:
    """A process that sees the stand-in as the hub; a call returns or raises as it does there."""

    def __init__(self, endpoint: str, home: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_ENDPOINT", endpoint)
            patch.setenv("HF_HOME", str(home))
            patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
            patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
            patch.delenv("HF_TOKEN", raising=False)
            patch.delenv("HF_HUB_OFFLINE", raising=False)
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=retry_at_once)
            self._pool.submit(time.time).result()  # the process starts while the patch holds

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a module-level function in the process."""
        return self._pool.submit(function, *arguments).result(timeout=120)

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def retry_at_once() -> None:
    """Spare the test the clients' waiting between retries, minutes in all."""
    import datasets

    datasets.config.STREAMING_READ_MAX_RETRIES = 2
    datasets.config.STREAMING_OPEN_MAX_RETRIES = 2
    time.sleep = lambda seconds: None
