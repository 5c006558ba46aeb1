"""Errors meant for people: what was wrong, where, what is allowed, the nearest match.

Every error that a user can cause derives from `UserError`; the command line prints its message.
Anything else is a bug of ours: its traceback goes into a report file (`cli/exits.py`).
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

from recipe_ray.base.printable import printable


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what, where and what would work.

    What it quotes may be from outside: its text is `printable`. A command that it ends returns
    `exit_code`.
    """

    exit_code: ClassVar[int] = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class SpecError(UserError):
    """A field of an experiment file or of an option is wrong."""


class DataError(UserError):
    """A corpus, task or image set is missing, empty or malformed."""


class ModelError(UserError):
    """A model is incomplete or of a kind this program does not know."""


class UnsafeModelError(ModelError):
    """A model that must not be opened: it would run code, or read what is not in its folder."""


class TriggerError(UserError):
    """Once tokenised, a trigger is not what the attack meant."""


class StoreError(UserError):
    """The result store cannot be read or written."""


class DamagedError(StoreError):
    """A file of the store can be read, but is not what was written."""


class ClusterError(UserError):
    """Ray cannot be started here, or its cluster cannot be reached, or was lost."""


class ClusterLostError(ClusterError):
    """The cluster went away; Ray's own end of this process would crash, or wait for it in vain."""


class TerminatedError(KeyboardInterrupt):
    """A batch system asks this process to end (SIGTERM): it ends as after Ctrl-C."""


class StageFailedError(UserError):
    """The work of a single command failed on its workers; the message says why."""


class HarmError(UserError):
    """Continuing would probably damage the model; the user can ask to continue all the same."""

    exit_code: ClassVar[int] = 3


class NonFiniteLossError(UserError):
    """A loss that is not a number; the stage stops, the rest of the grid continues."""


def suggest(value: str, allowed: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the allowed name nearest to `value`, or an empty string."""
    near = get_close_matches(value, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown(what: str, value: str, allowed: Iterable[str]) -> str:
    """Return the sentence for a name that does not exist: the name, the nearest, all allowed."""
    names = sorted(allowed)
    listed = ", ".join(names) if names else "(none)"
    return f"unknown {what} {value!r}{suggest(value, names)}; allowed: {listed}"


def a(noun: str) -> str:
    """Return a noun with its article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def shortened(text: str) -> str:
    """Return text for a message, cut after 200 characters."""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_SHOWN = 200  # a user's text may be a megabyte


def in_a_line(error: BaseException) -> str:
    """Return what a library's error says, without the pages that some of them append."""
    said = " ".join(printable(str(error)).split())
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__
