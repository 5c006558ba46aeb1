"""The registry: one decorator in one file makes a plugin known; nothing else changes.

The first time that a registry is asked, it imports every module of its package that registers
something. Then it imports the entry points of installed packages, so that a plugin may live outside
this repository. Such a module is light: torch and the like are imported in the functions that
compute with them. Entries of the user's own catalogues (`catalog.py`) are known as long as these
catalogues are named.
"""

import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import lru_cache
from importlib.abc import InspectLoader
from importlib.metadata import EntryPoints, entry_points
from typing import Any, Generic, TypeVar, cast

from recipe_ray.base.errors import SpecError, shortened, unknown
from recipe_ray.base.paths import looks_like_path
from recipe_ray.base.spec import Component

ENTRY_POINT_GROUP = "recipe_ray.plugins"
_DECORATOR = re.compile(r"^@[\w.]+\.register\(|^ *[A-Z]+\.register\(\w+\)\(", re.MULTILINE)

T = TypeVar("T", bound=Component)
C = TypeVar("C", bound=Component)


class Registry(Generic[T]):
    """Named component classes of one kind.

    Raises `SpecError` for a name registered twice, an unknown name or bad fields.
    """

    def __init__(self, kind: str, package: str, own: str = "") -> None:
        """Make the registry of a package; `own` says how a file of the user's own is named."""
        self.kind = kind
        self._own = own
        self._package = package
        self._classes: dict[str, type[T]] = {}
        self._loaded = False
        self._catalogued: Callable[[Collection[str]], Mapping[str, type[T]]] | None = None

    def look_also_in(self, entries: Callable[[Collection[str]], Mapping[str, type[T]]]) -> None:
        """Know the classes that `entries` returns, too; it is given the names that are taken."""
        self._catalogued = entries

    def register(self, name: str) -> Callable[[type[C]], type[C]]:
        """Return the class decorator that registers a component under `name`."""

        def add(cls: type[C]) -> type[C]:
            known = self._classes.get(name)
            if known is not None and _full_name(known) != _full_name(cls):
                both = f"{_full_name(known)} and {_full_name(cls)}"
                raise SpecError(f"{self.kind} {name!r} is registered twice: {both}")
            cls.name = name
            self._classes[name] = cast("type[T]", cls)
            return cls

        return add

    def get(self, name: str) -> type[T]:
        """Return the class registered under `name`."""
        known = self._known()
        if name not in known:
            is_path = self._own and looks_like_path(name)
            own = f". A path is not a name: {self._own}" if is_path else ""
            raise SpecError(f"{unknown(self.kind, name, known)}{own}")
        return known[name]

    def parse(self, value: Any) -> Any:
        """Turn a name, or a mapping with `name`, into a component; pass components through."""
        if isinstance(value, Component):
            return value
        if isinstance(value, str):
            return self.get(value)()
        if isinstance(value, dict) and isinstance(value.get("name"), str):
            fields = {key: item for key, item in value.items() if key != "name"}
            return self.get(value["name"]).model_validate(fields)
        given = shortened(repr(value))
        hint = "; YAML reads words such as no, ~ and 1 as text only if they are in quotes"
        note = hint if value is None or isinstance(value, (bool, int, float)) else ""
        raise SpecError(f"a {self.kind} is a name or a mapping with 'name', got {given}{note}")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._known()))

    def _known(self) -> Mapping[str, type[T]]:
        self._load()
        if self._catalogued is None:
            return self._classes
        return {**self._classes, **self._catalogued(self._classes)}

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        package = importlib.import_module(self._package)
        folders = getattr(package, "__path__", ())  # empty if one module has them all
        for module in pkgutil.walk_packages(folders, f"{self._package}."):
            if _registers(module):
                importlib.import_module(module.name)
        for entry in _entries(tuple(sys.path)):
            entry.load()


@lru_cache(maxsize=1)
def _entries(_: tuple[str, ...]) -> EntryPoints:
    """Return the entry points of all that is installed on a path, read once for all registries."""
    return entry_points(group=ENTRY_POINT_GROUP)


def _registers(module: pkgutil.ModuleInfo) -> bool:
    """Tell whether a line of a module is an `X.register(`; one without source may have it."""
    spec = module.module_finder.find_spec(module.name, None)
    loader = spec.loader if spec is not None else None
    source = loader.get_source(module.name) if isinstance(loader, InspectLoader) else None
    return source is None or _DECORATOR.search(source) is not None


def _full_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
