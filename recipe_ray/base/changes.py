"""Changes to what YAML or a command said: `a.b=value`, as `--set` takes them."""

import json
from collections.abc import Iterator
from typing import Any, TypeVar

from pydantic import ValidationError

from recipe_ray.base.errors import SpecError, shortened
from recipe_ray.base.spec import Spec, explain
from recipe_ray.base.strict_yaml import MAX_DEPTH, read_yaml

S = TypeVar("S", bound=Spec)


def changed(spec: S, changes: list[str]) -> S:
    """Return a copy of a spec after every change `a.b=value`; `a={b: value}` says the same."""
    fields = spec.model_dump(mode="json")
    fields.pop("name", None)
    for change in changes:
        for single in _spread(change):
            apply_change(fields, single)
    try:
        return type(spec).model_validate(fields)
    except ValidationError as error:
        raise explain(error, "--set") from None


def set_fields(changes: list[str]) -> frozenset[str]:
    """Return the dotted names of the fields that changes set (`fit.steps`); null sets nothing."""
    values: dict[str, str] = {}
    for change in changes:
        for single in _spread(change):
            name, _, text = single.partition("=")
            values[name] = text
    return frozenset(name for name, text in values.items() if _as_yaml(text) is not None)


def _spread(change: str) -> Iterator[str]:
    """Yield a change of a mapping as one change for each of its fields."""
    name, _, text = change.partition("=")
    value = _as_yaml(text)
    if not isinstance(value, dict) or not value:
        yield change
        return
    for field, inner in value.items():
        yield from _spread(f"{name}.{field}={json.dumps(inner, default=str)}")


def _as_yaml(text: str) -> Any:
    try:
        return read_yaml(text)
    except SpecError:
        return None  # `apply_change` says what is wrong


def apply_change(values: dict[str, Any], change: str) -> None:
    """Make one change `a.b=value` in nested mappings and lists; the value is read as YAML.

    Raises SpecError naming the change and the part of it that is wrong.
    """
    path, equals, text = change.partition("=")
    change = shortened(change)
    if not equals or not path:
        raise SpecError(f"--set {change}: expected a.b=value, as in launch.workers.purify=2")
    try:
        value = read_yaml(text)
    except SpecError as error:
        raise SpecError(f"--set {change}: not valid YAML: {error}") from None
    *parents, last = path.split(".")
    if len(parents) >= MAX_DEPTH:
        raise SpecError(f"--set {change}: {len(parents) + 1} names deep; allowed: {MAX_DEPTH}")
    here: Any = values
    for part in parents:
        here = _child(here, part, change)
    if isinstance(here, list):
        here[_index(here, last, change)] = value
    else:
        here[last] = value


def _child(here: Any, part: str, change: str) -> Any:
    child = (
        here[_index(here, part, change)] if isinstance(here, list) else here.setdefault(part, {})
    )
    if not isinstance(child, (dict, list)):
        raise SpecError(
            f"--set {change}: {shortened(part)!r} is {shortened(repr(child))}, which has no fields"
        )
    return child


def _index(here: list[Any], part: str, change: str) -> int:
    if not part.isdecimal() or len(part) > 9 or int(part) >= len(here):
        raise SpecError(
            f"--set {change}: {shortened(part)!r} is not a place in a list of {len(here)}"
        )
    return int(part)
