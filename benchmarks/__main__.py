"""`python -m benchmarks [group ...]`: measure all groups, or those named; one line a figure."""

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path

GROUPS = (
    "peak",
    "purify",
    "finetune",
    "agreement",
    "ray_overhead",
    "images",
    "ddp",
    "predict",
    "scan",
    "grid_scale",
    "nodes",
    "watching",
    "start",
)


def main(names: list[str]) -> None:
    """Print each figure of the groups as `name: median (min-max) unit`."""
    # workers are told of no working folder
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    for name in names or [name for name in GROUPS if find_spec(f"benchmarks.{name}")]:
        for figure in importlib.import_module(f"benchmarks.{name}").figures():
            sys.stdout.write(f"{figure}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
