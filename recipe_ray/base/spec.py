"""Specs: frozen pydantic models that forbid unknown fields and name the nearest allowed one.

A `Spec` is plain data. A `Component` is a spec with a registered name and a version: at once the
YAML schema of a plugin, its documentation and what its identity is made of.

If a field holds text, YAML reads `no`, `010`, `1.0` and `~` without quotes as something else than
was meant, and pydantic takes `yes` for the number 1. Here each gets an error that says so.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from recipe_ray.base.errors import SpecError, shortened, unknown
from recipe_ray.base.limits import LARGEST
from recipe_ray.base.plugin_source import Source, source_of

_NUMBERS = (int, float)
_LISTS = (list, tuple)
_WORDS = {True: "yes, on and true as true", False: "no, off and false as false"}


def check_scalars(field: str, annotation: Any, value: Any) -> None:
    """Raise SpecError, naming field and place, for a plain value that a field cannot mean.

    Nested specs check their own values.
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
        raise SpecError(f"{where}: {value} is not a finite number")
    elif value is None or isinstance(value, (bool, *_NUMBERS)):
        said = _misread(kinds, value)
        if said is not None:
            raise SpecError(f"{where}: {said}")


def _is_beyond(value: Any, kinds: frozenset[Any]) -> bool:
    if isinstance(value, str) and int in kinds and str not in kinds and value.strip().isdecimal():
        value = int(value[:40])  # pydantic takes '7' for 7
    return isinstance(value, int) and abs(value) > LARGEST


def _misread(kinds: frozenset[Any], value: Any) -> str | None:
    """Return what is wrong with a value that is not text, None if a field may hold it."""
    is_text, is_number = str in kinds, not kinds.isdisjoint(_NUMBERS)
    if kinds & {Any, object} or type(value) in kinds or not (is_text or is_number):
        return None
    if isinstance(value, bool):
        wanted = "if a word is meant, put it in quotes" if is_text else "a number is expected"
        return (
            f"this is the truth value {str(value).lower()} (YAML reads {_WORDS[value]}); {wanted}"
        )
    if not is_text or (is_number and value is not None):
        return None  # 1 for a float, and cases that pydantic explains well
    read = (
        "null, ~ and nothing as no value" if value is None else "digits without quotes as a number"
    )
    shown = "null" if value is None else value
    return f'text is expected, this is {shown} (YAML reads {read}); put it in quotes: "{shown}"'


@cache
def _kinds(annotation: Any) -> frozenset[Any]:
    """Return the classes that an annotation is made of, without those of a dict's keys."""
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


# a field with this mark says where or how something runs, not what comes out of it
NOT_HASHED: dict[str, Any] = {"hashed": False}
# a field added later: at its default neither the spec nor its key differs from before
HASHED_WHEN_SET: dict[str, Any] = {"hashed": "when set"}


class Spec(BaseModel):
    """Frozen data with named fields; a nested spec given in part keeps its other defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    # fields of earlier versions, and what to do in place of each
    REMOVED: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _check_and_merge(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for key, value in values.items():
            if key in cls.REMOVED:
                raise SpecError(f"field {key!r} was removed: {cls.REMOVED[key]}")
            if key not in cls.model_fields:
                raise SpecError(unknown("field", shortened(str(key)), cls.model_fields))
            check_scalars(key, cls.model_fields[key].annotation, value)
        return {key: cls._merged(key, value) for key, value in values.items()}

    @classmethod
    def _merged(cls, key: str, value: Any) -> Any:
        # `fit: {epochs: 4}` changes the plugin's own default fit, not the general one
        default = cls.model_fields[key].default
        plain = isinstance(default, Spec) and not isinstance(default, Component)
        if plain and isinstance(value, dict):
            return {**default.fields(), **value}
        return value

    def identity(self) -> dict[str, Any]:
        """Return every field that can change a number.

        Those marked NOT_HASHED are left out, those marked HASHED_WHEN_SET at their default.
        """
        return {
            name: _identity_of(getattr(self, name))
            for name, info in type(self).model_fields.items()
            if info.json_schema_extra != NOT_HASHED
            and (info.json_schema_extra != HASHED_WHEN_SET or getattr(self, name) != info.default)
        }

    def revised(self, **changes: Any) -> Self:
        """Return a copy with fields changed, validated like new input."""
        return type(self).model_validate({**self.fields(), **changes})

    def fields(self) -> dict[str, Any]:
        """Return the fields by name, nested specs as they are."""
        # not dict(self): that holds cached properties, too
        return {name: getattr(self, name) for name in type(self).model_fields}


class Component(Spec):
    """A plugin: the registry gives it its name; `version` rises when its meaning changes.

    A class from outside of this package that declares no `version` is identified by its source.
    """

    name: ClassVar[str] = ""
    version: ClassVar[int] = 1
    # taken when the class is made: the imported code runs, even if the file is edited later
    _source: ClassVar[Source | None] = None

    title: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$",
        description="its name in tables; it tells variants apart",
        json_schema_extra=NOT_HASHED,
    )

    @model_serializer(mode="wrap")
    def _with_name(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {"name": self.name, **handler(self)}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Note the source of a class from outside of this package, and keep it in its identity."""
        super().__pydantic_init_subclass__(**kwargs)
        cls._source = source_of(cls, Component)
        if cls._source is not None:
            for name in _IDENTITIES & vars(cls).keys():
                setattr(cls, name, _with_source(vars(cls)[name]))

    @classmethod
    def meaning(cls) -> dict[str, Any]:
        """Return what says how the class computes: its name, and its version or source.

        Raises SpecError for a class that declares no `version` and whose source cannot be read.
        """
        return {"name": cls.name, "version": cls._version()}

    @classmethod
    def _version(cls) -> int | str:
        source = cls._source
        if source is None:
            return cls.version
        if source.hash is None:
            raise SpecError(
                f"{cls.name or cls.__name__}: {source.problem}, so results could not be told from "
                f"those of other code. Declare `version = 1` in class {cls.__qualname__}, and "
                "raise it whenever a result can change"
            )
        return f"{cls.version}+{source.hash}"

    def identity(self) -> dict[str, Any]:
        """Return what decides this component's results: name, version and every hashed field."""
        return {**self.meaning(), **super().identity()}

    def label(self) -> str:
        """Return the short name used in folder names and tables."""
        return self.title or self.default_label()

    def default_label(self) -> str:
        """Return the label of a component without a title."""
        return self.name


_IDENTITIES = {"identity", "identity_at", "meaning"}  # methods that say what a component is


def _with_source(method: Any) -> Any:
    """Return a plugin's own method of `_IDENTITIES`, whose result says the version with source."""
    function = method.__func__ if isinstance(method, classmethod) else method

    @wraps(function)
    def sourced(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**function(self, *args, **kwargs), "version": self._version()}

    return classmethod(sourced) if isinstance(method, classmethod) else sourced


def _identity_of(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.identity()
    if isinstance(value, (list, tuple)):
        return [_identity_of(item) for item in value]
    return value


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn fields that do not fit together, found in building specs, into an error for people."""
    try:
        yield
    except ValidationError as error:
        raise explain(error, where) from None


def explain(error: ValidationError, where: str) -> SpecError:
    """Turn a pydantic error into lines `where: field: what is wrong`, nested ones flattened."""
    lines = [f"{where}: {path or '(top level)'}: {text}" for path, text in _flatten(error, "")]
    rest = len(lines) - _LINES
    more = [f"{where}: and {rest:,} more errors"] if rest > 0 else []
    return SpecError("\n".join([*lines[:_LINES], *more]))


_LINES = 20  # of errors in a message: a list of thousands may be wrong all through


def _flatten(error: ValidationError, prefix: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    items = error.errors(include_url=False)
    for item in items:
        depth = len(item["loc"])
        if item["type"] == "too_short" and any(
            len(other["loc"]) > depth and other["loc"][:depth] == item["loc"] for other in items
        ):
            continue  # pydantic counts a wrong field as if it were missing
        path = prefix + "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"]
        )
        cause = item.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):
            found += _flatten(cause, path)
        else:
            shown = shortened(repr(item["input"]))
            given = "" if item["type"] in ("missing", "value_error") else f" (got {shown})"
            meant = _MEANT.get(item["type"])
            said = meant.format(**item.get("ctx", {})) if meant else item["msg"]
            found.append((path.lstrip("."), (said if cause is None else str(cause)) + given))
    return found


_LIST = "a list is expected, in YAML [a, b]; one value needs its brackets, too: [a]"
_MAPPING = "a mapping is expected, in YAML {{name: value}}"
_WHOLE, _TRUTH = "a whole number is expected", "true or false is expected"
# what pydantic says in words of Python; braces are of its context
_MEANT = {
    "tuple_type": _LIST,
    "list_type": _LIST,
    "too_short": "too few values: {min_length} or more are needed, there are {actual_length}",
    "too_long": "too many values: {max_length} at most, there are {actual_length}",
    "string_too_short": "too short a text: {min_length} or more characters are needed",
    "dict_type": _MAPPING,
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), "a number is expected"),
    **dict.fromkeys(("bool_type", "bool_parsing"), _TRUTH),
}
