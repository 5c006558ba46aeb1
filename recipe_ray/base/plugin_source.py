"""The source of a plugin: the part of its identity that nobody needs to remember to raise.

A component of this package has a `version` that we raise. One from outside is identified by its
source instead, unless its author declares a `version`. The source is every Python file of the
plugin's top-level package or module, and of the modules that it imports, if those belong to no
other installed distribution. The place of these files and their line ends do not count.
"""

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

OURS = __name__.partition(".")[0]
MAX_FILES, MAX_BYTES = 10_000, 100_000_000  # of a plugin's source; above: it declares a version
_HASH_LENGTH = 16
_SUFFIXES = (".py", *EXTENSION_SUFFIXES)
_IMPORTERS = {"__import__", "import_module", "importlib.import_module"}
_FOREIGN_FOLDERS = {"__pycache__", "site-packages", "node_modules"}


@dataclass(frozen=True)
class Source:
    """The hash of a component's source, or why it has none."""

    hash: str | None = None
    problem: str = ""


class _UnreadableError(Exception):
    """There is no source to hash; the message says why."""


def source_of(cls: type, component: type) -> Source | None:
    """Return the source that belongs to the identity of `cls`; None: its `version` stands for it.

    `component` is the base class of all components. The `version` of a base class counts if the
    same package declares it.
    """
    outside = [
        one for one in cls.__mro__ if issubclass(one, component) and _top(one.__module__) != OURS
    ]
    for place, one in enumerate(outside):
        if "version" in vars(one):
            own = _top(one.__module__)
            outside = [c for c in outside[:place] if _top(c.__module__) != own]
            break
    if not outside:
        return None
    try:
        return Source(_hash(one.__module__ for one in outside))
    except _UnreadableError as error:
        return Source(problem=str(error))


def _hash(modules: Iterable[str]) -> str:
    """Return one hash of all files of the modules' source."""
    waiting = [_root_of(module) for module in modules]
    own = {_top(name) for name, _ in waiting}
    found: dict[str, Path] = {}  # by a name that does not contain the file's place
    seen: set[str] = set()
    digest = hashlib.sha256()
    size = 0
    while waiting:
        name, place = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for label, file in _files(name, place):
            found[label] = file
            size += file.stat().st_size
            if len(found) > MAX_FILES or size > MAX_BYTES:
                raise _UnreadableError(
                    f"its source has more than {MAX_FILES} files or {MAX_BYTES // 10**6} MB"
                )
            imported = _read(file)[1]
            waiting += [one for other in imported - seen for one in _followed(other, own)]
    for label, file in sorted(found.items()):
        digest.update(f"{label}\0{_read(file)[0]}\n".encode())
    return digest.hexdigest()[:_HASH_LENGTH]


def _root_of(module: str) -> tuple[str, Path]:
    """Return the name and place of the outermost package of a module, or of the module itself."""
    own = sys.modules.get(module)
    if own is None or not _is_source(own):
        raise _UnreadableError(f"no source file is found for its module {module!r}")
    if module == "__main__":
        module = _name_of_main(own)
    file = Path(str(own.__file__))
    parts = module.split(".")
    # a folder without __init__.py; among installed packages it is shared with others
    is_shared = not {"site-packages", "dist-packages"}.isdisjoint(file.parts)
    top = sys.modules.get(parts[0])
    if len(parts) > 1 and not is_shared and getattr(top, "__file__", None) is None:
        return parts[0], file.parents[len(parts) - 2 + (file.name == "__init__.py")]
    for count in range(1, len(parts)):
        name = ".".join(parts[:count])
        package = sys.modules.get(name)
        if package is not None and _is_source(package):
            return name, Path(str(package.__file__)).parent
    if len(parts) == 1:
        return module, file.parent if file.name == "__init__.py" else file
    return ".".join(parts[:-1]), file.parent


def _name_of_main(main: ModuleType) -> str:
    # a script is known by the name under which others would import it
    if main.__spec__ is not None:
        return main.__spec__.name
    return Path(getattr(main, "__file__", None) or "__main__").stem


def _is_source(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and file.endswith(".py") and Path(file).is_file()


def _files(name: str, place: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of a module, or of a whole package, by their names within it."""
    if not place.is_dir():
        yield f"{name}.py", place
        return
    for here, folders, files in os.walk(place):
        folders[:] = [one for one in folders if not _is_foreign(Path(here, one))]
        for file in files:
            path = Path(here, file)
            if file.endswith(_SUFFIXES) and not file.startswith(".") and path.is_file():
                # a compiled file has the same name for all interpreters
                stem = file if file.endswith(".py") else file.partition(".")[0]
                yield f"{name}/{path.relative_to(place).with_name(stem).as_posix()}", path


def _is_foreign(folder: Path) -> bool:
    return (
        folder.name.startswith(".")
        or folder.name in _FOREIGN_FOLDERS
        or (folder / "pyvenv.cfg").exists()
    )


def _followed(name: str, own: set[str]) -> Iterator[tuple[str, Path]]:
    """Yield an imported module if it is the plugin's: of no other installed distribution."""
    if name == OURS or name in sys.stdlib_module_names:
        return
    distributions = _distributions()
    of_it = set(distributions.get(name, ()))
    if of_it and not any(of_it & set(distributions.get(one, ())) for one in own):
        return
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None) if module is not None else _found(name)
    if file and file.endswith(".py") and Path(file).is_file():
        place = Path(file)
        yield name, place.parent if place.name == "__init__.py" else place


def _found(name: str) -> str | None:
    try:
        spec = importlib.util.find_spec(name)  # a name without a dot: nothing is run
    except (ImportError, ValueError):
        return None
    return spec.origin if spec is not None else None


@lru_cache(maxsize=1)
def _distributions_on(_: tuple[str, ...]) -> dict[str, list[str]]:
    return dict(packages_distributions())


def _distributions() -> dict[str, list[str]]:
    return _distributions_on(tuple(sys.path))


def _read(file: Path) -> tuple[str, frozenset[str]]:
    """Return the hash of a file, and the top-level names that it imports."""
    about = file.stat()
    return _read_once(file, about.st_mtime_ns, about.st_size, about.st_ino)


@lru_cache(maxsize=MAX_FILES)
def _read_once(file: Path, *_: int) -> tuple[str, frozenset[str]]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise _UnreadableError(f"{file} cannot be read: {error.strerror}") from error
    if file.suffix != ".py":
        return hashlib.sha256(data).hexdigest(), frozenset()
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return hashlib.sha256(data).hexdigest(), frozenset(_imports(data))


def _imports(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):  # a template, or of another Python
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (_top(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield _top(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in _IMPORTERS and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield _top(name.value)


def _top(module: str) -> str:
    return module.partition(".")[0]
