"""What an artifact is called and what its manifest promises; no file system is chosen here."""

import json
import os
import re
import stat
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe_ray.base.errors import DamagedError, StoreError
from recipe_ray.base.fingerprint import file_checksum, stream_checksum
from recipe_ray.base.foreign import open_foreign
from recipe_ray.base.paths import path_part

MANIFEST = "manifest.json"
ROWS = "rows.parquet"
LEFT_OUT = "left_out"  # the names that an export did not copy (`export.py`)
MANIFEST_VERSION = 1
MAX_LABEL = 80

_PLAIN = re.compile(r"[A-Za-z0-9_]+")
_ATTEMPT = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class ArtifactId:
    """Names an artifact: `kind` and `key` identify it, `label` is for people.

    The label is reduced to letters, digits and `._-`, at most 80 of them. Raises ValueError for a
    kind or key that is not made of letters, digits and underscores.
    """

    kind: str
    label: str
    key: str

    def __post_init__(self) -> None:
        for name, value in (("kind", self.kind), ("key", self.key)):
            if not _PLAIN.fullmatch(value):
                raise ValueError(f"artifact {name} {value!r}: use letters, digits, underscores")
        label = re.sub(r"[^A-Za-z0-9._-]+", "-", self.label)[:MAX_LABEL].strip("-")
        object.__setattr__(self, "label", label or self.kind)

    @property
    def folder(self) -> str:
        """Return its place in the store."""
        return f"{self.kind}/{self.label}-{self.key}"

    @classmethod
    def from_folder(cls, kind: str, name: str) -> "ArtifactId | None":
        """Read an id back from a folder's name; None for a folder that is not an artifact's."""
        label, dash, key = name.rpartition("-")
        return cls(kind, label, key) if dash and label and _PLAIN.fullmatch(key) else None


def write_manifest(
    folder: Path, artifact: ArtifactId, attempt: str, contents: dict[str, Any]
) -> None:
    """Write the manifest of a finished folder: `contents`, the names, and every file's checksum.

    Raises ValueError if the folder already has a file of that name.
    """
    if (folder / MANIFEST).exists():
        raise ValueError(f"{folder}/{MANIFEST}: this name is the store's")
    whole = {
        **contents,
        "kind": artifact.kind,
        "label": artifact.label,
        "key": artifact.key,
        "attempt": attempt,
        "manifest_version": MANIFEST_VERSION,
        "files": checksums(folder),
    }
    (folder / MANIFEST).write_text(json.dumps(whole, indent=1))
    _share_as(folder / MANIFEST, folder)


def _share_as(pattern: Path, folder: Path) -> None:
    """Let those read a folder's files who may read the file `pattern`, made as the umask says.

    Some libraries make files that only their owner may read, whatever the umask is.
    """
    mode = stat.S_IMODE(pattern.stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every file below a folder, by relative path.

    Raises ValueError for a symbolic link (what it points to would stay behind) and for a name that
    could not be read back.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path}: an artifact holds files, not links")
        if path.is_file():
            name = _inside(path.relative_to(folder).as_posix(), f"{folder}: the file name")
            found[name] = {"sha256": file_checksum(path), "size": path.stat().st_size}
    return found


def verify(folder: Path, manifest: dict[str, Any], shown: str, *, sizes_only: bool = False) -> None:
    """Raise StoreError naming the first file of an artifact that is not what was committed.

    A file that was added is one, too: whoever opens a model's folder might read it. Hidden files
    are left alone: systems make them, and no reader of models looks for them.
    """
    check_names(_names_in(folder), manifest, shown)
    for name, expected in manifest["files"].items():
        # files in a store's folder are as foreign as its manifest
        with open_foreign(folder / name, _ANY, within=folder, error=StoreError) as file:
            check_size(f"{shown}/{name}", os.fstat(file.fileno()).st_size, expected)
            if not sizes_only:
                check_sum(f"{shown}/{name}", stream_checksum(file), expected)


def check_names(names: Collection[str], manifest: dict[str, Any], shown: str) -> None:
    """Raise StoreError naming the first file of an artifact that was added or is missing."""
    known = {*manifest["files"], MANIFEST}
    hidden = {name for name in names if name.rpartition("/")[2].startswith(".")}
    for added in sorted({*names} - known - hidden):
        raise StoreError(
            f"{shown}/{added}: not a part of what was committed, and it could be read with it; "
            "move it out of the store"
        )
    for missing in [name for name in manifest["files"] if name not in names]:
        raise StoreError(f"{shown}/{missing}: missing, although it was committed; {_REPAIR}")


def check_size(shown: str, size: int, expected: dict[str, Any]) -> None:
    """Raise StoreError if a file has not the bytes that were committed."""
    if size != expected["size"]:
        raise StoreError(f"{shown}: {size} bytes, but {expected['size']} were committed; {_REPAIR}")


def check_sum(shown: str, checksum: str, expected: dict[str, Any]) -> None:
    """Raise StoreError if a file has not the SHA-256 that was committed."""
    if checksum != expected["sha256"]:
        raise StoreError(f"{shown}: checksum mismatch; {_REPAIR}")


def _names_in(folder: Path) -> set[str]:
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return {path.relative_to(folder).as_posix() for path in found}


def parse_manifest(data: bytes, shown: str) -> dict[str, Any]:
    """Return a manifest from its bytes; raise StoreError naming it if it is damaged."""
    manifest = parse_json(data, shown)
    version = manifest.get("manifest_version")
    if version != MANIFEST_VERSION:
        raise StoreError(
            f"{shown}: manifest version {version}; this program reads version {MANIFEST_VERSION}"
        )
    files = manifest.get("files")
    if (
        not _ATTEMPT.fullmatch(str(manifest.get("attempt")))  # it becomes part of a path
        or not isinstance(files, dict)
        or not all(
            isinstance(entry, dict) and {"sha256", "size"} <= set(entry) for entry in files.values()
        )
    ):
        raise StoreError(f"{shown}: damaged manifest: no proper attempt or files; {_REPAIR}")
    for name in files:
        _inside(name, f"{shown}: damaged manifest: the name of a file")
    return manifest


def parse_json(data: bytes, shown: str) -> dict[str, Any]:
    """Return the object in JSON bytes; raise DamagedError naming the file if it is not one."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{shown}: damaged, not valid JSON ({error}); {_REMOVE}") from error
    if not isinstance(value, dict):
        raise DamagedError(f"{shown}: damaged, expected a JSON object; {_REMOVE}")
    return value


def _inside(name: str, what: str) -> str:
    return "/".join(path_part(part, what) for part in name.split("/"))


_ANY = sys.maxsize  # bytes; the manifest says how many, and that is compared
_REPAIR = "delete its folder and start the same command again to make it again"
_REMOVE = "delete it, with its whole folder if it is a manifest"
