"""Regular expressions of a tokenizer: those whose search could take for ever are refused.

The library that searches them backtracks. What it could go back over is counted.
"""

import re
from collections.abc import Iterator

from recipe_ray.base.errors import ModelError

MAX_PATTERN = 2000  # characters
_MAX_COUNT = 1000  # in {n,m} of a pattern
_MAX_OPEN = 2  # repetitions without end in one branch of a pattern
_MAX_OPTIONAL = 11  # parts; an open repetition counts as _OPEN of them
_OPEN = 4


def check_pattern(pattern: str, where: str) -> None:
    """Raise ModelError for a regular expression whose search can take more than polynomial time.

    That is: a repeated group with a repetition or a choice in it, a reference back, more than
    `_MAX_OPEN` open repetitions or `_MAX_OPTIONAL` optional parts in one branch.
    """
    shown = f"{where}: pattern {pattern[:60]!r}"
    if len(pattern) > MAX_PATTERN:
        raise ModelError(f"{shown}: {len(pattern)} characters; allowed: at most {MAX_PATTERN}")
    if re.search(r"\\[1-9kg]|\(\?[~(]", pattern):
        raise ModelError(f"{shown}: refers to a group; allowed: patterns without references")
    levels: list[list[int]] = [[0, 0, 0]]  # a group's repetitions, choices; open ones of the branch
    closed: list[int] | None = None
    for sign in _tokens(pattern):
        if sign == "(":
            levels.append([0, 0, 0])
        elif sign == ")" and len(levels) > 1:
            closed = levels.pop()
            for place in range(2):
                levels[-1][place] += closed[place]
            levels[-1][2] += closed[2]
            continue
        elif sign == "|":
            levels[-1][1] += 1
            levels[-1][2] = 0
        elif sign[0] in "*+{" or sign[0] == "?":
            _check_repetition(sign, closed, levels[-1], shown)
        closed = None


def _check_repetition(token: str, closed: list[int] | None, level: list[int], shown: str) -> None:
    if token[0] != "?" and closed is not None and (closed[0] or closed[1]):
        raise ModelError(f"{shown}: repeats a group that has a repetition or a choice in it")
    bounds = [int(number) for number in re.findall(r"\d+", token)]
    if any(number > _MAX_COUNT for number in bounds):
        raise ModelError(f"{shown}: repeats {max(bounds)} times; allowed: {_MAX_COUNT}")
    level[0] += 1
    short = token[0] == "?" or (token[0] == "{" and not token.endswith(",}") and max(bounds) <= 8)
    level[2] += 1 if short else _OPEN
    if level[2] > _MAX_OPTIONAL:
        raise ModelError(
            f"{shown}: too many repetitions in one branch; allowed: {_MAX_OPEN} without end, or "
            f"{_MAX_OPTIONAL} optional parts"
        )


def _tokens(pattern: str) -> Iterator[str]:
    """Yield brackets, bars and repetitions; everything else as one letter."""
    place = 0
    while place < len(pattern):
        letter = pattern[place]
        if letter == "\\":
            named = re.match(r"\\[pPxu]\{[^}]*\}", pattern[place:])
            place += len(named[0]) if named else 2
            yield "."
        elif letter == "[":
            place = _end_of_class(pattern, place)
            yield "."
        elif letter == "(":
            start = re.match(r"\((?:\?(?:<?[=!]|>|[imxs-]*:|<\w+>))?", pattern[place:])
            place += len(start[0]) if start else 1
            yield "("
        elif letter == "{" and (count := re.match(r"\{\d*,?\d*\}", pattern[place:])):
            place += len(count[0])
            yield count[0]
        else:
            place += 1
            # a second sign, as in `+?`, says how the first one tries
            if (
                letter in "?+"
                and place > 1
                and pattern[place - 2] in "*+?}"
                and _is_sign(pattern, place - 2)
            ):
                continue
            yield letter if letter in "()|*+?" else "."


def _is_sign(pattern: str, place: int) -> bool:
    return place == 0 or pattern[place - 1] != "\\"


def _end_of_class(pattern: str, place: int) -> int:
    depth = 0
    while place < len(pattern):
        if pattern[place] == "\\":
            place += 1
        elif pattern[place] == "[":
            depth += 1
        elif pattern[place] == "]":
            depth -= 1
            if depth == 0:
                return place + 1
        place += 1
    return place
