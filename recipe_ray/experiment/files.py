"""Reading experiment files: strict YAML, `--set a.b=v`, errors that name file and field.

Files that ask related questions share a `base`: a file whose settings they take over, and whose
`define` section names components, so that a grid can say `defenses: [none, recipe-por]`.
"""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from recipe_ray.base.errors import SpecError
from recipe_ray.base.spec import Spec, explain
from recipe_ray.experiment.search.spec import Search
from recipe_ray.experiment.spec import Experiment

# where a component may stand, and so the name of a defined one
_OF_GRIDS = ("models", "attacks", "defenses", "auxiliaries", "tasks", "probes", "corpus", "task")
_OF_SEARCHES = ("model", "attack", "defense", "auxiliary")
COMPONENT_FIELDS = frozenset((*_OF_GRIDS, *_OF_SEARCHES))
S = TypeVar("S", bound=Spec)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is an error instead of the last one winning."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    own: set[Any] = set()
    for key_node, _ in node.value:
        key = key_node.value  # as written: `<<` is no key that could be constructed
        if isinstance(key, str) and key in own:
            line = key_node.start_mark.line + 1
            raise SpecError(f"line {line}: the key {key!r} is given twice")
        own |= {key} if isinstance(key, str) else set()
    # what `<<` merges in comes first, so that the mapping's own keys win
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key_node, deep=True): loader.construct_object(value, deep=True)
        for key_node, value in node.value
    }


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load_experiment(path: Path, changes: tuple[str, ...] = ()) -> Experiment:
    """Return the experiment in a YAML file, after the changes `a.b=value` are made.

    Raises SpecError naming the file, the field, what is allowed and the nearest match.
    """
    return _loaded(Experiment, path, changes)


def load_search(path: Path, changes: tuple[str, ...] = ()) -> Search:
    """Return the search in a YAML file, like `load_experiment`."""
    return _loaded(Search, path, changes)


def _loaded(kind: type[S], path: Path, changes: tuple[str, ...]) -> S:
    values = _with_base(_read(path), path)
    for change in changes:
        apply_change(values, change)
    definitions = _definitions(values.pop("define", None) or {}, path)
    values = {key: _resolved(value, definitions, key) for key, value in values.items()}
    _refuse_other_kind(kind, values, path)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain(error, str(path)) from None


def _refuse_other_kind(kind: type[Spec], values: dict[str, Any], path: Path) -> None:
    """Raise SpecError for a whole file of the other kind, given to the wrong command."""
    commands: dict[type[Spec], str] = {
        Experiment: "plan, sweep and debug take",
        Search: "search takes",
    }
    for other, take in commands.items():
        if other is not kind and _is_whole(other, values) and not _is_whole(kind, values):
            raise SpecError(f"{path}: a file that `recipe-ray` {take}, not this command")


def _is_whole(kind: type[Spec], values: dict[str, Any]) -> bool:
    required = {name for name, info in kind.model_fields.items() if info.is_required()}
    return required <= values.keys() <= kind.model_fields.keys()


def read_mapping(path: Path, what: str, needed: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; `what` and `needed` are how messages describe it.

    Raises SpecError where the file is missing, not YAML, gives a key twice or is no mapping.
    """
    try:
        values = _StrictLoader(path.read_text()).get_single_data()
    except FileNotFoundError:
        raise SpecError(f"{path}: no such {what}") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: a folder, not {_a(what)}") from None
    except (yaml.YAMLError, UnicodeDecodeError, SpecError) as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise SpecError(f"{path}: expected a mapping with {needed}")
    return values


def _read(path: Path) -> dict[str, Any]:
    values = read_mapping(path, "experiment file", "'name' and more")
    return {key: _unshared(value) for key, value in values.items()}


def _unshared(value: Any) -> Any:
    """Return a copy whose parts are all its own: changing one YAML alias must not reach others."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _with_base(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the file's values over those of its base; mappings are merged key by key."""
    name = values.pop("base", None)
    if name is None:
        return values
    if not isinstance(name, str):
        raise SpecError(f"{path}: base: expected a file beside this one, got {name!r}")
    base = _read(path.parent / name)
    if "base" in base:
        raise SpecError(f"{path.parent / name}: base: a base has no base of its own")
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = {**base[key], **value} if both else value
    return merged


def _definitions(section: Any, path: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(section, dict) or not all(isinstance(v, dict) for v in section.values()):
        raise SpecError(f"{path}: define: expected names with a mapping each")
    return section


def _resolved(value: Any, definitions: dict[str, dict[str, Any]], key: str = "") -> Any:
    """Return a value with every defined name in it replaced, wherever a component may stand."""
    if isinstance(value, dict):
        return {name: _resolved(item, definitions, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolved(item, definitions, key) for item in value]
    if key not in COMPONENT_FIELDS or not isinstance(value, str) or value not in definitions:
        return value
    others = {name: item for name, item in definitions.items() if name != value}
    found = _resolved(definitions[value], others)
    # its name here is its name in tables, unless it gives itself another
    return {"title": value, **found} if "name" in found else found


def apply_change(values: dict[str, Any], change: str) -> None:
    """Make one change `a.b=value` in nested mappings and lists; the value is read as YAML.

    Raises SpecError naming the change and the part of it that is wrong.
    """
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise SpecError(f"--set {change}: expected a.b=value, as in launch.workers.purify=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {change}: {text!r} is not valid YAML: {error}") from None
    *parents, last = path.split(".")
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
        raise SpecError(f"--set {change}: {part!r} is {child!r}, which has no fields")
    return child


def _index(here: list[Any], part: str, change: str) -> int:
    if not part.isdecimal() or int(part) >= len(here):
        raise SpecError(f"--set {change}: {part!r} is not a place in a list of {len(here)}")
    return int(part)
