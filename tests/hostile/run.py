"""Runs the command of a case in this process, and says what was not as it must be.

A command may take 30 seconds (of a processor: others may use the machine) and 2 GB more than there
was. It writes into its own folder, the temporary folder and the user's state only. It prints no
traceback and no sign that moves a cursor, and ends with one of the case's exit codes.
"""

import io
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from hostile.case import Case
from hostile.good import prepare
from recipe_ray.cli import main

MAX_S, MAX_BYTES, MAX_SAID = 30.0, 2 * 10**9, 5000
SECRET = "the-content-of-a-file-that-is-no-part-of-this"
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link"}
_CHANGES |= {"os.truncate", "os.chmod", "shutil.rmtree", "shutil.move", "shutil.copyfile"}
_watched: list[set[str]] = []
_hooked: list[bool] = []


@dataclass(frozen=True)
class Ended:
    """How a command ended; `bytes`: by how much the most memory so far has grown."""

    code: int
    out: str
    err: str
    seconds: float
    bytes: int
    written: frozenset[str]


def ended(case: Case, folder: Path) -> Ended:
    """Make a case's input in a folder, run its command there, and return how it ended."""
    (folder / "work").mkdir()
    (folder / "secret").write_text(SECRET)
    home, out, err = folder / "home", io.StringIO(), io.StringIO()
    variables = {"HOME": str(home), "XDG_STATE_HOME": str(home), "COLUMNS": "200"}
    before = Path.cwd()
    with patch.dict(os.environ, {**os.environ, **variables}):
        for name in ("RECIPE_RAY_DATA", "RECIPE_RAY_CATALOG"):
            os.environ.pop(name, None)
        os.chdir(folder / "work")
        try:
            prepare(case.words)
            case.make()
            base, began = _peak(), time.process_time()
            with _writes() as written, redirect_stdout(out), redirect_stderr(err):
                code = _code(["recipe-ray", *case.words.split()])
        finally:
            os.chdir(before)
    seconds = time.process_time() - began
    return Ended(code, out.getvalue(), err.getvalue(), seconds, _peak() - base, frozenset(written))


def _code(words: list[str]) -> int:
    with patch.object(sys, "argv", words):
        try:
            main()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched:
        return
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES:
        places = arguments[:1]
    elif event in _CHANGES:
        places = arguments[:2]
    else:
        return
    for place in places:
        if isinstance(place, (str, bytes, os.PathLike)):
            _watched[-1].add(os.path.normpath(Path.cwd() / os.fsdecode(place)))


@contextmanager
def _writes() -> Iterator[set[str]]:
    """Yield the places that Python code writes, makes or deletes meanwhile."""
    if not _hooked:
        sys.addaudithook(_heard)  # it stays for ever
        _hooked.append(True)
    written: set[str] = set()
    _watched.append(written)
    try:
        yield written
    finally:
        _watched.remove(written)


def problems(case: Case, end: Ended, folder: Path) -> list[str]:
    """Return what is wrong with the way a command ended."""
    found = []
    if end.code not in case.codes:
        found.append(f"exit code {end.code}, not {case.codes}")
    if "Traceback" in end.out + end.err:
        found.append("a traceback")
    if end.code == 2 and "error: " not in end.err and "error" not in end.out:
        found.append("no error is said")
    told = [line for line in (end.out + end.err).splitlines() if not line.isprintable()]
    found += [f"unprintable: {line[:80]!r}" for line in told[:1]]
    if len(end.err) > MAX_SAID:
        found.append(f"{len(end.err)} characters of errors")
    if SECRET in end.out + end.err or any(_tells(one) for one in _files(folder / "work")):
        found.append("a file from outside is shown or copied")
    if end.seconds > MAX_S:
        found.append(f"{end.seconds:.0f} seconds")
    if end.bytes > MAX_BYTES:
        found.append(f"{end.bytes:,} bytes")
    allowed = [str(folder / "work"), str(folder / "home"), tempfile.gettempdir(), "/dev/"]
    outside = [one for one in end.written if not one.startswith(tuple(allowed))]
    outside += [one for one in end.written if one == str(folder / "secret")]
    found += [f"written outside: {one}" for one in outside]
    left = sorted(one.name for one in folder.iterdir())
    if not set(left) <= {"home", "secret", "work"}:
        found.append(f"left outside of the folder: {left}")
    if (folder / "secret").read_text() != SECRET:
        found.append("a file outside was changed")
    return found


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def _tells(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 10**6:
        return False
    return SECRET.encode() in path.read_bytes()
