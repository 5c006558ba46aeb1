"""Paths that a user typed, and names in data that become a part of a path.

A typed path may not be a path at all, it may be missing, or something else may be in its place. A
name in a row, plan, note or manifest of a shared store is data like any other: `path_part` checks
it when it becomes a path. Files of models are checked when they are read (`foreign.py`).
"""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Literal

from recipe_ray.base.errors import SpecError, StoreError, shortened, suggest

Kind = Literal["file", "folder", "any"]

_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/")  # one slash: a Path makes this of a URL
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,9}$")


def looks_like_path(text: str) -> bool:
    """Tell whether a word was meant as a path and not as a name: it has a separator or suffix.

    A leading `.` or `~` counts, too.
    """
    return "/" in text or "\\" in text or text[:1] in (".", "~") or bool(_SUFFIX.search(text))


def is_url(text: str) -> bool:
    """Tell whether a word begins with a scheme, as https: or s3: do."""
    return bool(_URL.match(text))


def is_there(text: str) -> bool:
    """Tell whether a word is a path that exists."""
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError):  # longer than any path, or ~name of an unknown user
        return False


def expanded(path: str | Path) -> Path:
    """Return a path with `~` and `~user` replaced; raise SpecError for a user that is not known."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SpecError(f"{shortened(str(path))!r}: this machine knows no such user") from None


def local_path(text: str, where: str, wanted: str) -> Path:
    """Return a word as a path of this machine, `~` replaced; it need not exist.

    Raises SpecError, naming `where` and what is `wanted`, for a word that is not a path: an empty
    one, a URL, a YAML list or mapping.
    """
    if not text.strip():
        raise SpecError(f"{where}: it is empty; give {wanted}")
    if is_url(text):
        raise SpecError(f"{where} {text!r}: a URL, not a path of this machine; give {wanted}")
    if text.lstrip()[0] in "[{":
        raise SpecError(f"{where} {text!r}: not a path; give {wanted}")
    try:
        path = Path(text).expanduser()
        path.exists()
    except RuntimeError:  # ~name of a user that this machine does not know
        raise SpecError(f"{where} {text!r}: there is no such user; give {wanted}") from None
    except OSError as error:
        raise SpecError(f"{where} {text[:80]!r}: {error.strerror}; give {wanted}") from None
    return path


def existing_path(text: str, where: str, wanted: str, kind: Kind = "any") -> Path:
    """Return the path of an existing file or folder, as `kind` asks.

    Raises SpecError as `local_path` does, and for a path that is missing or of the other kind.
    """
    path = local_path(text, where, wanted)
    if not path.exists():
        raise SpecError(f"{where}: {why_missing(text)}; give {wanted}")
    if kind == "file" and path.is_dir():
        raise SpecError(f"{where}: {path} is a folder{_files_in(path)}; give {wanted}")
    if kind == "file" and not path.is_file():
        raise SpecError(f"{where}: {path} is no regular file; write what it holds into one")
    if kind == "folder" and not path.is_dir():
        raise SpecError(f"{where}: {path} is a file, not a folder; give {wanted}")
    return path


def why_missing(text: str) -> str:
    """Return the clause for a missing path: the nearest name, or the missing folder."""
    try:
        path = expanded(text)
    except SpecError as error:
        return str(error)
    folder = path.parent
    if any(sign in path.name for sign in "*?"):
        return f"{text} does not exist: patterns are not expanded here"
    if path.is_symlink():
        return f"{text} is a link to {path.readlink()}, which does not exist"
    if folder.is_dir():
        return f"{text} does not exist{suggest(path.name, _names(folder))}"
    if folder.exists():
        return f"{text} does not exist: {folder} is a file, not a folder"
    return f"{text} does not exist: there is no folder {folder}{_near_folder(folder)}"


def _near_folder(folder: Path) -> str:
    known = folder.parent
    return suggest(folder.name, _names(known)) if known.is_dir() else ""


def _files_in(folder: Path) -> str:
    names = [name for name in _names(folder) if not name.startswith(".")]
    listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f" (with {listed})" if names else " (empty)"


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


MAX_BYTES = 200  # of 255 that file systems take, so that a suffix still fits
RESERVED = '/\\<>:"|?*'  # separators here or elsewhere, and what other systems refuse


def path_part(name: object, what: str) -> str:
    """Return `name`, which can be one part of a path; `what` names it in errors.

    Raises StoreError if it is not text, empty, absolute, `..` or hidden, holds a separator, a
    reserved or an unprintable character (such as NUL), or is longer than 200 bytes.
    """
    wrong = _wrong(name)
    if wrong is not None:
        shown = ascii(name)
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        raise StoreError(
            f"{what} {shown} cannot be a part of a path: {wrong}. Use letters, digits and . _ -, "
            "the first one a letter, a digit or _"
        )
    return str(name)


def _wrong(name: object) -> str | None:
    if not isinstance(name, str):
        return f"it is {type(name).__name__}, not text"
    if not name:
        return "it is empty"
    if name.startswith("."):
        return "it begins with a dot, as .. and hidden files do"
    if not name.isprintable():
        return "it holds an unprintable character"
    if found := sorted(set(name) & set(RESERVED)):
        return f"it holds {' '.join(found)}"
    if name.endswith((" ", ".")) or name.startswith(" "):
        return "it begins with a space, or ends with a space or a dot"
    if len(name.encode()) > MAX_BYTES:
        return f"it has {len(name.encode())} bytes, at most {MAX_BYTES} are allowed"
    return None


FOLDER = "RECIPE_RAY_FOLDER"  # the command's current folder, for the processes that work for it


def enter_folder() -> None:
    """Change to the folder that FOLDER names, if this machine has it.

    The processes of a Ray that was started elsewhere are in another one. A relative path of an
    experiment file would lead to other files there.
    """
    named = os.environ.get(FOLDER)
    if named:
        with suppress(OSError):
            os.chdir(named)
