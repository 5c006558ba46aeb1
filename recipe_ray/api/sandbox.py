"""`--sandbox`: somebody's model is read by a child process, and we open only what that has written.

The child (`sandboxed.py`) has no network, and limits of memory, time and the size of files. It
opens the folder as any command does, and writes the model again: plain safetensors, config and
tokenizer. Whatever the model's files make libraries do happens there. Without the means for this
nothing is opened: there is no fallback.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any

from recipe_ray.api.places import Named
from recipe_ray.base.errors import ModelError, SpecError
from recipe_ray.base.limits import SANDBOX_BYTES, SANDBOX_S
from recipe_ray.base.paths import expanded
from recipe_ray.base.printable import printable

logger = logging.getLogger("recipe_ray")

WRITTEN = 4  # times the size of the model's files: its memory, and what it may write
_SAID = 2**16  # bytes that are read of what the child says
_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # until this process ends
# nothing else of the environment is passed on, credentials least of all
_PASSED = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")


def converted(given: Named, *, allow_pickle: bool, ignore_adapter: bool) -> str:
    """Return a folder with the model that a child process has written; the log has what it left.

    The folder stays until this process ends. Raises SpecError for what is no local folder;
    ModelError if the child refuses the model, exceeds a limit, or cannot be isolated.
    """
    model = str(given)
    folder = expanded(model)
    if not isinstance(given, (str, PurePath)) or not folder.is_dir():
        raise SpecError(
            f"--sandbox: {model} is no folder on this machine, and the process that reads a model "
            "has no network; download it (`hf download OWNER/NAME --local-dir FOLDER`) and give "
            "that folder"
        )
    _KEPT.append(tempfile.TemporaryDirectory(prefix="recipe-ray-sandbox-"))
    place = Path(_KEPT[-1].name)
    target = place / "model" / (folder.resolve().name or "model")
    target.parent.mkdir()
    size = sum(_sizes(folder))
    asked = {
        "folder": str(folder.absolute()),
        "target": str(target),
        "allow_pickle": allow_pickle,
        "ignore_adapter": ignore_adapter,
        "memory": SANDBOX_BYTES.value + WRITTEN * size,
        "written": WRITTEN * size + 2**20,
        "seconds": SANDBOX_S.value,
    }
    notes = _child(model, asked, place).get("notes")
    for note in notes if isinstance(notes, list) else ():
        logger.warning("%s: %s", model, printable(str(note)))
    return str(target)


def _sizes(folder: Path) -> Iterator[int]:
    for entry in os.scandir(folder):
        if entry.is_file():
            found = entry.stat()
            yield min(found.st_size, found.st_blocks * 512)  # a file of holes raises no limit


def _child(model: str, asked: dict[str, Any], place: Path) -> dict[str, Any]:
    """Run the child and return what it says; raise ModelError, which says what became of it."""
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    environment |= {name: v for name, v in os.environ.items() if name.startswith("RECIPE_RAY_MAX_")}
    environment |= {"HOME": str(place), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    words = [sys.executable, "-P", "-m", "recipe_ray.api.sandboxed", json.dumps(asked)]
    told = place / "said"
    with told.open("wb") as out:
        child = subprocess.Popen(
            words,
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = child.wait(asked["seconds"])
        except subprocess.TimeoutExpired:
            slow = f"{model}: reading it in --sandbox takes too many seconds"
            raise SANDBOX_S.exceeded(slow, SANDBOX_S.value) from None
        finally:
            _end(child)
    with told.open("rb") as file:
        content = file.read(_SAID)
    try:
        said = json.loads(content)
    except (ValueError, RecursionError):
        said = None
    if code == 0 and isinstance(said, dict):
        return said
    if isinstance(said, dict) and "error" in said:
        raise ModelError(f"--sandbox: {printable(str(said['error']))}")
    raise ModelError(f"{model}: the process that read it in --sandbox {_ending(code)}")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and what it started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    limits = f"{SANDBOX_S.variable}, {SANDBOX_BYTES.variable}"
    return f"was ended by {name}; if a limit is too low for it, raise it ({limits})"
