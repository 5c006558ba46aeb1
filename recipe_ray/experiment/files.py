"""Reading experiment files: strict YAML, `--set a.b=v`, errors that name file and field.

Files that ask related questions share a `base`: a file whose settings they take over, and whose
`define` section names components, so that a grid can say `defenses: [none, recipe-por]`. `catalog`
names files that list more corpora and tasks (`base/catalog.py`).
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any, TypeVar

from pydantic import ValidationError

from recipe_ray.base.catalog import named_by_file
from recipe_ray.base.changes import apply_change
from recipe_ray.base.errors import SpecError, a, shortened
from recipe_ray.base.paths import expanded
from recipe_ray.base.spec import Spec, explain
from recipe_ray.base.strict_yaml import MAX_DEPTH, check_size, read_yaml_file
from recipe_ray.data.corpus import CORPORA
from recipe_ray.experiment.search import Search
from recipe_ray.experiment.spec import Experiment
from recipe_ray.stages.stage import kinds
from recipe_ray.tasks.task import TASKS

# fields that hold a component, and so also a defined name; without the fields of a grid
_SINGLE = ("model", "attack", "defense", "plus", "detectors", "auxiliary", "corpus", "task")
GIVEN = "the experiment"  # what a mapping is called in messages
S = TypeVar("S", bound=Spec)


def load_experiment(given: Path | Mapping[str, Any], changes: tuple[str, ...] = ()) -> Experiment:
    """Return the experiment in a YAML file, after the changes `a.b=value` are made.

    A mapping says the same as a file in the current folder would. Raises SpecError naming the file,
    the field, what is allowed and the nearest match.
    """
    if isinstance(given, Path):
        return _loaded(Experiment, given, changes)
    path = Path(GIVEN)
    with _about(path):
        check_size(plain := _plain(given))
    return _of_values(Experiment, _named_catalogs(plain, path), path, changes)


def load_search(path: Path, changes: tuple[str, ...] = ()) -> Search:
    """Return the search in a YAML file, like `load_experiment`."""
    return _loaded(Search, path, changes)


def _plain(value: Any) -> Any:
    """Return a value as YAML would have it: tuples become lists, paths text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, PurePath) else value


def _loaded(kind: type[S], path: Path, changes: tuple[str, ...]) -> S:
    return _of_values(kind, _read(path), path, changes)


def _of_values(kind: type[S], values: dict[str, Any], path: Path, changes: tuple[str, ...]) -> S:
    values = _with_base(values, path)
    for change in changes:
        apply_change(values, change)
    catalogs = _catalogs(values.pop("catalog", None), path, Path())
    definitions = _Definitions(values.pop("define", None) or {})
    with _about(path):
        values = definitions.put_into(values)
    _refuse_other_kind(kind, values, path)
    with named_by_file(catalogs):
        for registry in (CORPORA, TASKS):
            list(registry)  # an error in a catalogue names the catalogue, not the file that uses it
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
            raise SpecError(f"{path}: wrong command for this file; `recipe-ray` {take} it")


def _is_whole(kind: type[Spec], values: dict[str, Any]) -> bool:
    required = {name for name, info in kind.model_fields.items() if info.is_required()}
    # a file of an earlier version is of its kind all the same
    return required <= values.keys() <= kind.model_fields.keys() | kind.REMOVED.keys()


def read_mapping(path: Path, what: str, needed: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; `what` and `needed` are how messages describe it.

    Raises SpecError if the file is missing, not YAML, gives a key twice, is not a mapping, or
    still has places to fill in.
    """
    try:
        values = read_yaml_file(path)
    except FileNotFoundError:
        raise SpecError(f"{path}: no such {what}") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: a folder, not {a(what)}") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except SpecError as error:
        raise SpecError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise SpecError(f"{path}: expected a mapping with {needed}")
    open_places = list(_to_fill_in(values, ""))
    if open_places:
        raise SpecError(f"{path}: fill in what says REPLACE: {', '.join(open_places[:20])}")
    return values


_TO_FILL_IN = re.compile(r"\S*\bREPLACE(_[A-Z0-9_]+)?\b\S*")


def _to_fill_in(value: Any, place: str) -> Iterator[str]:
    """Yield the places of values that a file as we ship it leaves to its user."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _to_fill_in(one, f"{place}.{name}" if place else name)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _to_fill_in(one, f"{place}[{number}]")
    elif isinstance(value, str) and _TO_FILL_IN.fullmatch(value):
        yield place


def _read(path: Path) -> dict[str, Any]:
    return _named_catalogs(read_mapping(path, "experiment file", "'name' and more"), path)


def _named_catalogs(values: dict[str, Any], path: Path) -> dict[str, Any]:
    catalogs = _catalogs(values.get("catalog"), path, path.parent)
    named = {"catalog": list(map(str, catalogs))} if catalogs else {}
    return {**{key: _unshared(value) for key, value in values.items()}, **named}


def _catalogs(value: Any, path: Path, folder: Path) -> tuple[Path, ...]:
    """Return the catalogues that the file at `path` names, those in `folder` by their names."""
    names = [] if value is None else value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or not name:
            given = shortened(repr(name))
            raise SpecError(f"{path}: catalog: expected a file or a list of them, got {given}")
    return tuple(folder.absolute() / expanded(name) for name in names)


def _unshared(value: Any) -> Any:
    """Return a copy whose parts are all its own: changing one YAML alias must not reach others."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _with_base(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the file's values over those of its base; mappings are merged key by key."""
    name = values.pop("base", None)
    if name is None:
        return values
    if not isinstance(name, str):
        raise SpecError(f"{path}: base: expected a file in the folder of this one, got {name!r}")
    base = _read(path.parent / name)
    if "base" in base:
        raise SpecError(f"{path.parent / name}: base: a base cannot have a base itself")
    merged = dict(base)
    for key, value in values.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = {**base[key], **value} if both else value
    return merged


@contextmanager
def _about(path: Path) -> Iterator[None]:
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None


class _Definitions:
    """The components that a file names, each put together only once."""

    def __init__(self, section: Any) -> None:
        self._section = section
        of_kinds = (name for kind in kinds() for name in (*kind.axes, kind.cells))
        self._places = frozenset((*_SINGLE, "models", *of_kinds)) - {""}
        self._whole: dict[str, dict[str, Any]] = {}

    def put_into(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return values with every defined name replaced, in every place of a component.

        Raises SpecError for definitions that include one another, and for more than the limits
        of YAML allow.
        """
        section = self._section
        if not isinstance(section, dict) or not all(isinstance(v, dict) for v in section.values()):
            raise SpecError("define: expected names with a mapping each")
        check_size([values, section])  # what `base` and `--set` made of them
        replaced = {key: self._replaced(value, (), key) for key, value in values.items()}
        check_size(replaced)
        return replaced

    def _replaced(self, value: Any, inside: tuple[str, ...], key: str = "", depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise SpecError(f"define: definitions include others more than {MAX_DEPTH} deep")
        if isinstance(value, dict):
            return {k: self._replaced(item, inside, k, depth + 1) for k, item in value.items()}
        if isinstance(value, list):
            return [self._replaced(item, inside, key, depth + 1) for item in value]
        if key not in self._places or not isinstance(value, str) or value not in self._section:
            return value
        if value in inside[-1:]:
            return value  # within its own definition a name is the registered one
        if value in inside:
            raise SpecError(f"define: {' -> '.join((*inside, value))}: they include one another")
        if value not in self._whole:
            found = self._replaced(self._section[value], (*inside, value), "", depth)
            # its name here is its name in tables, unless it gives itself another
            self._whole[value] = {"title": value, **found} if "name" in found else found
        return self._whole[value]
