"""Strict YAML, the only way in which this package reads any.

It is YAML 1.1 as PyYAML reads it, without what surprises people: a key given twice, keys that are
not text, numbers that are infinite or beyond 64 bits, `010` and `1:30` (8 and 90). Dates are text.
Aliases (`*x`) and merge keys (`<<`) are counted as unfolded, before anything is built.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from recipe_ray.base.errors import SpecError
from recipe_ray.base.limits import YAML_BYTES, YAML_VALUES

MAX_DEPTH = 100  # of nested lists and mappings; Python's own stack ends at a few hundred
_TAG = "tag:yaml.org,2002:"
_TAGS = ("null", "bool", "int", "float", "str", "seq", "map")
_KINDS = {"null": "nothing", "bool": "a truth value", "int": "a number", "float": "a number"}
_SHOWN = 40  # characters of a user's text, in messages


def read_yaml(text: str) -> Any:
    """Return what a YAML document says, in dicts, lists, text, numbers, booleans and None.

    Raises SpecError, with the line, for anything else and for more than the limits allow.
    """
    YAML_BYTES.check(len(text.encode(errors="replace")), "not read")
    _count(text)
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise _error(mark, " ".join(filter(None, (error.context, error.problem)))) from None
    except yaml.YAMLError as error:
        raise SpecError(" ".join(str(error).split())) from None


def _count(text: str) -> None:
    """Raise SpecError for more values than the limit, in a tenth of the time that reading takes.

    libyaml does it, if PyYAML was built with it. `_Loader` counts in any case.
    """
    if not yaml.__with_libyaml__:
        return
    values = depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            values += isinstance(event, yaml.NodeEvent) and not isinstance(event, yaml.AliasEvent)
            if depth > MAX_DEPTH:
                return  # the time of libyaml grows with the square of the depth
            YAML_VALUES.check(values, "not read")
    except yaml.YAMLError:
        return  # `_Loader` says what is wrong, and where


def read_yaml_file(path: Path) -> Any:
    """Return what a YAML file says, like `read_yaml`; raises OSError if it cannot be read."""
    if not path.is_file() and path.exists() and not path.is_dir():
        raise SpecError("not a regular file; write its content into one")
    with path.open("rb") as file:
        YAML_BYTES.check(path.stat().st_size, "not read")
        data = file.read(YAML_BYTES.value + 1)
    try:
        return read_yaml(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SpecError(f"not UTF-8 text: {error}") from None


def check_size(value: Any) -> None:
    """Raise SpecError if nested dicts and lists, parts of which may be shared, unfold to too much.

    The limits are those of YAML: values, bytes of text, depth.
    """
    _Measure().of(value, 0)


class _Measure:
    """Counts what a value unfolds to; shared parts are visited only once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int, int]] = {}

    def of(self, value: Any, depth: int) -> tuple[int, int, int]:
        """Return values, bytes and height; `depth`: how deeply the value is nested."""
        found = self._known.get(id(value))
        if found is None:
            if depth > MAX_DEPTH:
                raise SpecError(_TOO_DEEP)
            found = self._measured(value, depth)
            if isinstance(value, (dict, list)):
                self._known[id(value)] = found
        _check_unfolded(*found, depth)
        return found

    def _measured(self, value: Any, depth: int) -> tuple[int, int, int]:
        if not isinstance(value, (dict, list)):
            return 1, len(value) if isinstance(value, str) else 0, 0
        keys = [str(key) for key in value] if isinstance(value, dict) else []
        items = value.values() if isinstance(value, dict) else value
        parts = [(len(keys), sum(map(len, keys)), 0), *(self.of(one, depth + 1) for one in items)]
        return _summed(parts)


_TOO_DEEP = f"lists and mappings are nested more than {MAX_DEPTH} deep"


def _summed(parts: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    values, size, height = zip(*parts, strict=True) if parts else ((), (), ())
    return 1 + sum(values), sum(size), 1 + max(height, default=0)


def _check_unfolded(values: int, size: int, height: int, depth: int) -> None:
    if depth + height > MAX_DEPTH:
        raise SpecError(_TOO_DEEP)
    YAML_VALUES.check(values, "with its aliases and definitions expanded")
    YAML_BYTES.check(size, "with its aliases and definitions expanded")


class _Loader(yaml.SafeLoader):
    """Composes nodes as PyYAML does, counting; constructs only plain data."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[int, tuple[int, int, int]] = {}
        self._depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose a node; count what it unfolds to."""
        is_alias = self.check_event(yaml.AliasEvent)
        peek: Any = self.peek_event  # untyped
        mark = peek().start_mark
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _error(mark, _TOO_DEEP)
        node = super().compose_node(parent, index)
        assert node is not None
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise _error(mark, "an alias is inside the value that it refers to")
        if not is_alias:
            _check_keys(node)
            self._sizes[id(node)] = self._size(node)
            YAML_VALUES.check(len(self._sizes), "not read")
        _check_unfolded(*self._sizes[id(node)], self._depth)
        return node

    def _size(self, node: Node) -> tuple[int, int, int]:
        if isinstance(node, ScalarNode):
            return 1, len(node.value), 0
        children = node.value
        if isinstance(node, MappingNode):
            children = [one for pair in node.value for one in pair]
        return _summed([self._sizes[id(one)] for one in children])


def _check_keys(node: Node) -> None:
    # here and not at construction: by then other mappings may be merged in
    keys = [key for key, _ in node.value] if isinstance(node, MappingNode) else []
    given: set[str] = set()
    for key in keys:
        if not isinstance(key, ScalarNode):
            raise _error(key.start_mark, "a list or mapping cannot be a key; allowed: text")
        tag, text = key.tag.removeprefix(_TAG), str(key.value)
        if tag not in ("str", "merge"):
            raise _error(key.start_mark, _unquoted(text, tag))
        if text in given:
            raise _error(key.start_mark, f"the key {text[:_SHOWN]!r} is given twice")
        given.add(text)


def _unquoted(text: str, tag: str) -> str:
    kind, shown = _KINDS.get(tag, tag), text[:_SHOWN]
    return f'YAML reads the key {shown or "(empty)"} as {kind}; write "{shown}"'


def _mapping(loader: _Loader, node: Node) -> dict[str, Any]:
    if not isinstance(node, MappingNode):
        raise _error(node.start_mark, "expected a mapping")
    # keys merged in by `<<` come first, so that the mapping's own keys win
    loader.flatten_mapping(node)
    return {str(key.value): loader.construct_object(one, deep=True) for key, one in node.value}


def _sequence(loader: _Loader, node: Node) -> list[Any]:
    if not isinstance(node, SequenceNode):
        raise _error(node.start_mark, "expected a list")
    return [loader.construct_object(one, deep=True) for one in node.value]


def _scalar(construct: Callable[[Node, str], Any]) -> Callable[[_Loader, Node], Any]:
    def constructed(_: _Loader, node: Node) -> Any:
        if not isinstance(node, ScalarNode):
            raise _error(node.start_mark, "expected one value, not a list or mapping")
        return construct(node, str(node.value))

    return constructed


@_scalar
def _text(_: Node, written: str) -> str:
    return written


@_scalar
def _null(node: Node, written: str) -> None:
    if written not in ("", "~", "null", "Null", "NULL"):
        raise _error(node.start_mark, f"{written[:_SHOWN]!r} is not null")


@_scalar
def _bool(node: Node, written: str) -> bool:
    known = yaml.SafeLoader.bool_values.get(written.lower())
    if known is None:
        raise _error(node.start_mark, f"{written[:_SHOWN]!r} is neither true nor false")
    return bool(known)


_PREFIXES = {"0x": 16, "0b": 2}
_DIGITS = re.compile(r"0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+")


@_scalar
def _int(node: Node, written: str) -> int:
    digits = written.lstrip("+-")
    if not _DIGITS.fullmatch(digits):
        raise _error(node.start_mark, _ambiguous(written))
    plain = digits.replace("_", "")
    base = _PREFIXES.get(plain[:2], 10)
    number = int(plain, base) if len(plain) <= 66 else 2**63
    if number >= 2**63:
        raise _error(node.start_mark, f"{_TOO_LARGE}: {written[:_SHOWN]}")
    return -number if written.startswith("-") else number


_TOO_LARGE = "a whole number beyond 64 bits"


def _ambiguous(written: str) -> str:
    shown = written[:_SHOWN]
    if not written.lstrip("+-")[:1].isdigit():
        return f"{shown!r} is not a number"
    how = "in base 60, as hours and minutes" if ":" in written else "as an octal number"
    return f'YAML reads {shown} {how}; write the number in full, or "{shown}" for text'


@_scalar
def _float(node: Node, written: str) -> float:
    if ":" in written:
        raise _error(node.start_mark, _ambiguous(written))
    try:
        number = float(written.replace("_", ""))
    except ValueError:
        number = math.inf  # `.inf` is read so
    if not math.isfinite(number):
        shown = written[:_SHOWN]
        raise _error(node.start_mark, f'{shown} is not a finite number; write "{shown}" for text')
    return number


def _refused(_: _Loader, node: Node) -> None:
    allowed = ", ".join(f"!!{name}" for name in _TAGS)
    shown = node.tag.replace(_TAG, "!!")[:_SHOWN]
    raise _error(node.start_mark, f"the tag {shown} is not supported; allowed: {allowed}")


def _error(mark: Any, said: str) -> SpecError:
    return SpecError(f"line {mark.line + 1}: {said}")


_CONSTRUCTORS: dict[str, Any] = {
    "null": _null,
    "bool": _bool,
    "int": _int,
    "float": _float,
    "str": _text,
    "merge": _text,  # `<<` has a meaning only as a key; elsewhere it is text
    "seq": _sequence,
    "map": _mapping,
}
# dates and `=` are text: every field takes them as text
_Loader.yaml_implicit_resolvers = {
    first: [one for one in found if one[0].removeprefix(_TAG) in (*_KINDS, "merge")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {_TAG + name: made for name, made in _CONSTRUCTORS.items()}
_Loader.yaml_constructors[None] = _refused
