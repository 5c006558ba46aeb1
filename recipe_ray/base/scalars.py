"""Plain values of fields that pydantic would take for something else, or blame for something else.

YAML reads `no`, `010`, `1.0` and `~` without quotes as what they are not meant to be if a field
holds text, and pydantic takes `yes` for the number 1. Here each gets an error that says so.
"""

import math
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from recipe_ray.base.errors import SpecError

_NUMBERS = (int, float)
_LISTS = (list, tuple)
_WORDS = {True: "yes, on and true as true", False: "no, off and false as false"}
LARGEST = 2**63 - 1  # of what numpy, torch and Parquet hold


def check_scalars(field: str, annotation: Any, value: Any) -> None:
    """Raise SpecError, naming field and place, for a plain value that a field cannot mean.

    Values of specs within are left to them.
    """
    _check(field, _kinds(annotation), value)


def _check(where: str, kinds: frozenset[Any], value: Any) -> None:
    if isinstance(value, _LISTS):
        for place, item in enumerate(value):
            _check(f"{where}[{place}]", kinds, item)
    elif isinstance(value, dict):
        for key, item in value.items() if dict in kinds else ():
            _check(f"{where}.{key}", kinds, item)
    elif _is_beyond(value, kinds):
        raise SpecError(f"{where}: a whole number beyond 64 bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise SpecError(f"{where}: {value} is no finite number")
    elif value is None or isinstance(value, (bool, *_NUMBERS)):
        said = _misread(kinds, value)
        if said is not None:
            raise SpecError(f"{where}: {said}")


def _is_beyond(value: Any, kinds: frozenset[Any]) -> bool:
    if isinstance(value, str) and int in kinds and str not in kinds and value.strip().isdecimal():
        value = int(value[:40])  # pydantic takes '7' for 7
    return isinstance(value, int) and abs(value) > LARGEST


def _misread(kinds: frozenset[Any], value: Any) -> str | None:
    """Return what is wrong with a value that is no text, None if a field may hold it."""
    is_text, is_number = str in kinds, not kinds.isdisjoint(_NUMBERS)
    if kinds & {Any, object} or type(value) in kinds or not (is_text or is_number):
        return None
    if isinstance(value, bool):
        wanted = "put a word that is meant in quotes" if is_text else "a number is expected"
        return (
            f"this is the truth value {str(value).lower()} (YAML reads {_WORDS[value]}); {wanted}"
        )
    if not is_text or (is_number and value is not None):
        return None  # 1 for a float, and what pydantic says well
    read = (
        "null, ~ and nothing as no value" if value is None else "digits without quotes as a number"
    )
    shown = "null" if value is None else value
    return f'text is expected, this is {shown} (YAML reads {read}); put it in quotes: "{shown}"'


@cache
def _kinds(annotation: Any) -> frozenset[Any]:
    """Return the classes that an annotation is made of, those of a dict's keys left out."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kinds(arguments[0])
    if origin is Literal:
        return frozenset(type(one) for one in arguments)
    if origin is dict:
        return _kinds(arguments[1]) | {dict}
    if origin in (Union, UnionType, *_LISTS):
        return frozenset().union(*(_kinds(one) for one in arguments))
    return frozenset({NoneType if annotation is None else annotation})
