"""One hostile input: how it is made, the command that it is given to, how that may end.

A maker writes into the working folder. What is good there is made before: see `good.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FAILED = (2,)  # an error for people
FINE = (0,)  # what is hostile is left out, or harmless
EITHER = (0, 2)


@dataclass(frozen=True)
class Case:
    """A hostile input; `codes`: the exit codes that are right for it."""

    name: str
    words: str
    make: Callable[[], Any]
    codes: tuple[int, ...] = FAILED


def cases(group: str, words: str, table: dict[str, Any]) -> list[Case]:
    """Return a table's rows as cases: a maker, or a maker and the exit codes."""
    return [
        Case(f"{group}: {name}", words, *(row if isinstance(row, tuple) else (row,)))
        for name, row in table.items()
    ]
