"""What it costs to start a command that computes nothing, in starts of Python itself.

Each command and `python -c pass` take turns, each in a process of its own. `start_NAME` is the
seconds from the call to the end, `start_NAME_ratio` the CPU time (of user and system) in CPU times
of `python -c pass`: other load moves the seconds, and the ratio hardly. Every command was started
once before, so that its byte code is kept, as after any first start or installation.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.contenders import Figure
from recipe_ray.store.store import Store

ROUNDS = 7
PLAIN = "python"
_NO_BYTE_CODE = "PYTHONDONTWRITEBYTECODE"


def figures() -> list[Figure]:
    """Start every command in turns."""
    program = str(Path(sys.executable).with_name("recipe-ray"))
    with tempfile.TemporaryDirectory() as folder:
        Store.open(folder).write_plan("small", {"cells": [], "stages": {}})
        commands = {
            PLAIN: [sys.executable, "-c", "pass"],
            "help": [program, "--help"],
            "version": [program, "--version"],
            "list": [program, "list"],
            "list_models": [program, "list", "models"],
            "status": [program, "status", "--store", folder],
            "usage_error": [program, "swep"],
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        ratios: dict[str, list[float]] = {name: [] for name in commands if name != PLAIN}
        for words in commands.values():
            _started(words)
        for _ in range(ROUNDS):
            turn = {name: _started(words) for name, words in commands.items()}
            for name, (wall_s, cpu_s) in turn.items():
                seconds[name].append(wall_s)
                if name != PLAIN:
                    ratios[name].append(cpu_s / turn[PLAIN][1])
    return [
        *(Figure(f"start_{name}", values, "s") for name, values in seconds.items()),
        *(Figure(f"start_{name}_ratio", values, "x") for name, values in ratios.items()),
    ]


def _started(words: list[str]) -> tuple[float, float]:
    """Return the seconds and the CPU seconds that a command took."""
    before, began = _children_cpu_s(), time.perf_counter()
    around = {name: value for name, value in os.environ.items() if name != _NO_BYTE_CODE}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(words, env=around, check=False, **quiet)
    return time.perf_counter() - began, _children_cpu_s() - before


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
