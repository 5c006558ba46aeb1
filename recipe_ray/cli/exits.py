"""How a command ends: its exit code, and what is said of an error.

`docs/exit-codes.md` has the codes as a table. An error that a user can repair (`UserError`, a full
disk) is one line. Any other error is a fault of this program. It is one line too, and its traceback
goes into a report file that only its owner can read. `--debug` shows the traceback in any case.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import sys
import tempfile
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from recipe_ray import __version__
from recipe_ray.base.errors import TerminatedError, UserError, in_a_line

FAILED, USER_ERROR = 1, UserError.exit_code
INTERNAL = 70  # as `sysexits.h` has it; scan's own codes are below 5
INTERRUPTED, TERMINATED = 130, 143  # as shells say of a command that Ctrl-C or SIGTERM ended

# what a command that one of them stopped does if it is given again; of the others nothing is kept
_SWEEP = "what is finished is kept in the store; the same command continues from there"
_ONE_MODEL = (
    "the work so far is kept next to --out; the same command continues from there, and deleting "
    "the folder that ends in .partial gives it up"
)
_KEPT = {
    "sweep": _SWEEP,
    "search": _SWEEP,
    "debug": _SWEEP,
    "purify": _ONE_MODEL,
    "backdoor": _ONE_MODEL,
}
_LOST = "nothing of it is kept; the same command begins again"

# the machine's state and the user's rights: nothing that this program could have done better
_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
_MACHINE |= {errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG}
_FULL = {errno.ENOSPC, errno.EDQUOT}
# libraries in Rust and C++ turn an error of the system into text
_NUMBERED = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_REPORTS = 20  # of which older ones are deleted
_LONGEST = 2**20  # characters of a report


class EndedError(BaseException):
    """Carries what ended a command past typer, which would drop some errors silently."""

    def __init__(self, error: BaseException, command: str) -> None:
        super().__init__(command)
        self.error, self.command = error, command


class Commands(TyperGroup):
    """The commands; what ends one of them reaches `explain`, except what typer itself raises."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except _OF_TYPER:
            raise
        except BrokenPipeError:
            raise  # `recipe-ray list | head`: typer ends quietly
        except BaseException as error:
            raise EndedError(error, ctx.invoked_subcommand or "") from error


# ClickException, Exit and Abort, of the click that typer has
_OF_TYPER: Any = (typer.BadParameter.__mro__[2], typer.Exit, typer.Abort, SystemExit)


def explain(error: BaseException, command: str, *, debug: bool) -> int:
    """Say in a line why a command ended, and return its exit code; `debug`: with the traceback."""
    if debug:
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        terminated = isinstance(error, TerminatedError)
        what = "terminated" if terminated else "interrupted"
        _say(f"{what}: {_KEPT.get(command, _LOST)}", "yellow")
        return TERMINATED if terminated else INTERRUPTED
    if isinstance(error, UserError):
        _say(f"error: {error}", "red")
        return error.exit_code
    of_machine = _said_of_machine(error)
    if of_machine is not None:
        _say(f"error: {of_machine}", "red")
        return USER_ERROR
    hint = "" if debug else f" {_kept_report(error)}"
    _say(f"internal error: {_in_words(error)}. This is a fault of recipe-ray.{hint}", "red")
    return INTERNAL


def _say(text: str, colour: str) -> None:
    typer.secho(text, fg=colour, err=True)


def _in_words(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "the memory of this machine is used up"
    if isinstance(error, RecursionError):
        return "RecursionError: something is nested too deeply"
    return in_a_line(error)


def _said_of_machine(error: BaseException) -> str | None:
    """Return what is wrong with the machine, if that is what an error or one of its causes says."""
    for one in _causes(error):
        number = one.errno if isinstance(one, OSError) else None
        found = _NUMBERED.search(str(one)) if number is None else None
        if found is not None:
            number = int(found[1] or found[2])
        if number not in _MACHINE:
            continue
        place = f"{one.filename}: " if isinstance(one, OSError) and one.filename else ""
        more = "; free some space and start the same command again" if number in _FULL else ""
        return f"{place}{os.strerror(number)}{more}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _kept_report(error: BaseException) -> str:
    said = "".join(traceback.format_exception(error))
    about = (
        f"recipe-ray {__version__}, Python {platform.python_version()}, {platform.platform()}\n"
        f"{' '.join(sys.argv)}\n\n"
    )
    content = (about + said)[:_LONGEST].encode(errors="backslashreplace")
    for folder in _report_folders():
        try:
            path = _written(folder, content)
        except OSError:
            continue
        return f"Its report is {path}; send it along if you tell us of it"
    return "Its report cannot be written anywhere; --debug shows it"


def _report_folders() -> Iterator[Path]:
    state = os.environ.get("XDG_STATE_HOME", "")
    yield (Path(state) if state.startswith("/") else _home() / ".local/state") / "recipe-ray"
    yield Path(tempfile.gettempdir())


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # without HOME and without an entry of this user
        return Path(tempfile.gettempdir())


def _written(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    stem = "recipe-ray-error-"
    name = f"{stem}{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{os.getpid()}.txt"
    # nobody else may read it, and nothing that is there already is followed or replaced
    handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    for old in sorted(folder.glob(f"{stem}*.txt"))[:-_REPORTS]:
        old.unlink(missing_ok=True)
    return folder / name
