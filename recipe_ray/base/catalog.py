"""Catalogues: components without code of their own, one entry of a YAML file each.

    corpora:
      NAME: {kind: text, about: "What it is.", hub: {repo: owner/name, revision: COMMIT}}
    tasks:
      NAME: {kind: text, class_names: [calm, angry], path_train: a.csv, path_test: b.csv}

An entry becomes a class like any plugin's. It says what its section declares (`Entry`), and may
change the default of every field of its kind. Ours are in the package. A user's own are named by
RECIPE_RAY_CATALOG or by `catalog:` in an experiment file. Their identity is what they say and the
content that they lead to, never their place. They are not source code.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, TypeVar, cast

from pydantic import Field, PositiveInt, ValidationError, create_model

from recipe_ray.base.errors import SpecError, shortened, unknown
from recipe_ray.base.paths import expanded
from recipe_ray.base.spec import Component, Spec, explain
from recipe_ray.base.strict_yaml import read_yaml_file

VARIABLE = "RECIPE_RAY_CATALOG"
SECTIONS = ("corpora", "tasks")
NAME = r"[A-Za-z0-9]([A-Za-z0-9._+-]*[A-Za-z0-9_+-])?"  # as for a title: it names folders
_OF_EVERY_KIND = ("kind", "about", "version", "descriptions")
_NOT_OF_ENTRIES = {"title", "revision"}  # the name is the title, and `hub` has the revision
_named_by_file: ContextVar[tuple[Path, ...]] = ContextVar("named_by_file", default=())

T = TypeVar("T", bound=Component)


class Entry(Spec):
    """What every entry may say; a section adds the constants of its kinds."""

    kind: str
    about: str = Field("An entry of a catalogue.", description="its documentation")
    version: PositiveInt = Field(1, description="raise it if what the data mean changes")
    descriptions: dict[str, str] = Field({}, description="of fields, in place of the general ones")

    def constants(self, kind: "Kind[Any]") -> dict[str, Any]:
        """Return the class variables by name."""
        return {}

    def decides(self) -> dict[str, Any]:
        """Return what belongs to the identity of a user's entry and is not a field of the class."""
        return {}


@dataclass(frozen=True)
class Kind(Generic[T]):
    """What the entries of a kind have in common.

    `base`: the class that they derive from; `fields`: which of `Entry` are its own;
    `rows_at_once`: how many samples are held while a data set of the hub is streamed.
    """

    base: type[T]
    fields: tuple[str, ...]
    rows_at_once: int


class FromEntry(Component):
    """What a class made of an entry adds: the entry identifies it, in every process."""

    # of the arguments of `_blank`; a class made here is in no module that others could import
    made_from: ClassVar[tuple[str, str, str, bool]]
    decides: ClassVar[Mapping[str, Any]] = {}

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
        """Is pickled as the entry and the fields; a plugin derived from the class as any other."""
        own = type(self)
        if "made_from" in vars(own):
            return _blank, own.made_from, self.__getstate__()
        return _blank_of, (own,), self.__getstate__()

    @classmethod
    def meaning(cls) -> dict[str, Any]:
        """Return name, version and, of a user's entry, the constants that decide the data."""
        return {**super().meaning(), **cls.decides}


def _blank(module: str, name: str, values: str, is_own: bool) -> Component:
    catalog: Catalog[Any] = import_module(module).CATALOG
    return _blank_of(catalog.class_of(name, values, is_own))


def _blank_of(made: type[Component]) -> Component:
    return made.__new__(made)


class Catalog(Generic[T]):
    """One section of catalogues: what its entries may say, and the classes made of them.

    It is the variable `CATALOG` of `module`.
    """

    def __init__(
        self, section: str, module: str, entry: type[Entry], kinds: Mapping[str, Kind[T]]
    ) -> None:
        """Make the section; `entry` reads what every one of `kinds` may say."""
        assert section in SECTIONS
        self._section = section
        self._module = module
        self._entry = entry
        self._kinds = kinds
        self._made: dict[tuple[str, str, bool], type[T]] = {}

    def of_package(self, file: Path) -> dict[str, type[T]]:
        """Return the classes of a file of ours by name; each is an attribute of the module, too."""
        classes = dict(self._classes(file, is_own=False))
        for made in classes.values():  # so that the class itself can be pickled
            setattr(sys.modules[self._module], made.__qualname__, made)
        return classes

    def fields(self) -> dict[str, dict[type[Spec], set[str]]]:
        """Return, by kind, what an entry may say, and the class that each field is one of."""
        return {name: self._fields(kind) for name, kind in self._kinds.items()}

    def of_user(self, taken: Collection[str]) -> dict[str, type[T]]:
        """Return the classes of the user's own catalogues by name.

        Raises SpecError, naming file and entry, for an entry with a wrong field, or whose name
        is among `taken` or in two catalogues.
        """
        found: dict[str, type[T]] = {}
        places: dict[str, Path] = {}
        for file in own_catalogs():
            for name, made in self._classes(file, is_own=True):
                where = f"{file}: {self._section}.{name}"
                if name in taken:
                    raise SpecError(f"{where}: this name is taken; `recipe-ray list` shows by what")
                if name in places:
                    raise SpecError(f"{where}: {places[name]} has an entry of this name, too")
                found[name], places[name] = made, file
        return found

    def class_of(self, name: str, values: str, is_own: bool) -> type[T]:
        """Return the class of an entry, `values` in JSON; the same one for the same entry.

        Raises SpecError or ValidationError for what it may not say.
        """
        key = (name, values, is_own)
        if key not in self._made:
            made = self._make(name, json.loads(values), is_own)
            cast("type[FromEntry]", made).made_from = (self._module, *key)
            self._made[key] = made
        return self._made[key]

    def _classes(self, file: Path, *, is_own: bool) -> Iterator[tuple[str, type[T]]]:
        for name, values in _read(file).get(self._section, {}).items():
            where = f"{file}: {self._section}.{name}"
            placed = {key: _placed(key, value, file.parent) for key, value in values.items()}
            try:
                yield name, self.class_of(name, json.dumps(placed), is_own)
            except ValidationError as error:
                raise explain(error, where) from None
            except SpecError as error:
                raise SpecError(f"{where}: {error}") from None

    def _make(self, name: str, values: dict[str, Any], is_own: bool) -> type[T]:
        kind = self._kind_of(values)
        constants, defaults = self._fields(kind).values()
        for key in values:
            if key not in constants | defaults:
                raise SpecError(unknown("field", shortened(key), constants | defaults))
        entry = self._entry.model_validate({k: v for k, v in values.items() if k in constants})
        for key in entry.descriptions:
            if key not in defaults:
                raise SpecError(f"descriptions: {unknown('field', shortened(key), defaults)}")
        fields = values.keys() & defaults | entry.descriptions.keys()
        changed: Any = None  # of most entries; pydantic takes its time for what reads a class
        if fields:
            changed = kind.base.model_validate({k: v for k, v in values.items() if k in defaults})
        made: Any = create_model(
            re.sub(r"[^A-Za-z0-9]", "", name.title()),
            __base__=(FromEntry, kind.base),
            __module__=self._module,
            __doc__=entry.about.strip(),
            **{
                field: _with_default(
                    kind.base, field, getattr(changed, field), entry.descriptions.get(field)
                )
                for field in fields
            },
        )
        decides = entry.decides() if is_own else {}
        about = {"name": name, "version": entry.version, "decides": decides}
        for variable, value in {**entry.constants(kind), **about}.items():
            setattr(made, variable, value)
        return cast("type[T]", made)

    def _fields(self, kind: Kind[T]) -> dict[type[Spec], set[str]]:
        defaults = set(kind.base.model_fields) - _NOT_OF_ENTRIES
        return {self._entry: {*_OF_EVERY_KIND, *kind.fields}, kind.base: defaults}

    def _kind_of(self, values: Mapping[str, Any]) -> Kind[T]:
        if "kind" not in values:
            raise SpecError(f"kind is missing; allowed: {', '.join(self._kinds)}")
        kind = values["kind"]
        if not isinstance(kind, str) or kind not in self._kinds:
            raise SpecError(unknown("kind", shortened(str(kind)), self._kinds))
        return self._kinds[kind]


def _with_default(base: type[Component], field: str, value: Any, said: str | None) -> Any:
    """Return a field with another default and, if one is given, another description."""
    info = base.model_fields[field]
    about = Field(description=said or info.description, json_schema_extra=info.json_schema_extra)
    return Annotated[info.annotation, *info.metadata, about], value


@contextmanager
def named_by_file(files: Iterable[Path]) -> Iterator[None]:
    """Make the entries of more catalogues known within the block."""
    token = _named_by_file.set((*_named_by_file.get(), *files))
    try:
        yield
    finally:
        _named_by_file.reset(token)


def own_catalogs() -> tuple[Path, ...]:
    """Return the user's catalogues, each once: those of RECIPE_RAY_CATALOG, then a file's."""
    named = os.environ.get(VARIABLE, "").split(os.pathsep)
    files = [expanded(name) for name in named if name.strip()]
    return tuple(dict.fromkeys(file.resolve() for file in (*files, *_named_by_file.get())))


def settle() -> None:
    """Let the environment name the catalogues by absolute paths.

    The processes that inherit it may work in other folders.
    """
    named = [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name.strip()]
    if named:
        whole = (str(expanded(name).absolute()) for name in named)
        os.environ[VARIABLE] = os.pathsep.join(whole)


def _read(file: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the sections of a catalogue, each its entries by name.

    Raises SpecError, naming the file, for a file that is not a catalogue.
    """
    try:
        about = file.stat()
        return _read_once(file, about.st_mtime_ns, about.st_size, about.st_ino)
    except FileNotFoundError:
        named = f"{VARIABLE} or `catalog:` of an experiment file names it"
        raise SpecError(f"{file}: no such catalogue ({named})") from None
    except IsADirectoryError:
        raise SpecError(f"{file}: a folder, not a catalogue; name the YAML file in it") from None
    except OSError as error:
        raise SpecError(f"{file}: cannot be read: {error.strerror}") from None
    except SpecError as error:
        raise SpecError(f"{file}: {error}") from None


@lru_cache(maxsize=100)
def _read_once(file: Path, *_: int) -> dict[str, dict[str, dict[str, Any]]]:
    try:
        sections = read_yaml_file(file)
    except SpecError as error:
        raise SpecError(f"not valid YAML: {error}") from None
    if not isinstance(sections, dict) or not sections:
        raise SpecError(f"expected a mapping with {' or '.join(SECTIONS)}")
    for section, entries in sections.items():
        if section not in SECTIONS:
            raise SpecError(unknown("section", shortened(section), SECTIONS))
        if not isinstance(entries, dict):
            raise SpecError(f"{section}: expected names with a mapping each")
        for name, values in entries.items():
            if not re.fullmatch(NAME, name):
                allowed = "letters, digits and . _ + -, a letter or digit first, no dot last"
                raise SpecError(
                    f"{section}: {shortened(name)!r} is not a valid name; allowed: {allowed}"
                )
            if not isinstance(values, dict):
                raise SpecError(f"{section}.{name}: expected a mapping with kind and more")
    return sections


def _placed(key: str, value: Any, folder: Path) -> Any:
    # a catalogue and the files that it names are moved together
    is_path = key.startswith("path") and isinstance(value, str) and value
    return str(folder / expanded(value)) if is_path else value
