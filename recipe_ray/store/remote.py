"""The same file operations on an object store (S3, Google Cloud Storage, Azure) by obstore.

Object stores cannot rename. So each attempt to write an artifact puts the files under a name of its
own. The manifest is created last and only if there is none; it says which attempt counts. So a
reader sees one whole attempt or none, and if there are several writers, one knows that it was
first.

After an error that may pass, obstore tries again for two seconds. Then we do (`Patience`), since we
hear Ctrl-C.

This module also turns the place of a store, a folder or a URI, into file operations.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import obstore as obs
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore

from recipe_ray.base.errors import StoreError, unknown
from recipe_ray.base.paths import expanded
from recipe_ray.store.files import Files, LocalFiles
from recipe_ray.store.leftovers import Entry, clear_dead, find_dead, scratch_name
from recipe_ray.store.manifest import (
    MANIFEST,
    check_names,
    check_size,
    check_sum,
    parse_manifest,
    verify,
)
from recipe_ray.store.object_stores import CREDENTIALS, SCHEMES, Place, parse_place, with_region
from recipe_ray.store.patience import Patience, explained

if TYPE_CHECKING:
    import pyarrow.fs as pafs

T = TypeVar("T")

PIECE = 8 * 1024 * 1024  # bytes
AT_ONCE = Patience(total_s=0.0)
FIRST_LOOK = Patience(total_s=5.0)  # at a store that may be misspelt
_SCRATCH_PREFIX = "recipe-ray-work-"
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")
_METADATA = ("169.254.169.254", "metadata.google.internal")  # asked if no key was given
_AWS_CHAIN = "External AWS credential provider: "
_STATUS = re.compile(r"status code: (4\d\d)")
_PASSING = ("408", "429")
_ANSWER = re.compile(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", re.DOTALL)

log = logging.getLogger(__name__)


class RemoteFiles:
    """`Files` below a place in an object store; what fails for a while is tried again."""

    def __init__(self, place: Place, patience: Patience | None = None) -> None:
        self._place = place
        self._patience = patience or Patience()
        self._store = self._tried(place.open, "open", "", AT_ONCE)
        self._verified: set[str] = set()

    def shown(self, path: str) -> str:
        return f"{self._place.shown}/{path}" if path else self._place.shown

    def arrow(self) -> tuple[pafs.FileSystem, str]:
        return self._place.arrow(), f"{self._place.bucket}/{self._place.path}".rstrip("/")

    def read(self, path: str) -> bytes | None:
        def action() -> bytes | None:
            try:
                return bytes(obs.get(self._store, self._at(path)).bytes())
            except FileNotFoundError as error:
                if _is_bucket_missing(error):
                    raise
                return None

        return self._tried(action, "read", path)

    def write(self, path: str, data: bytes) -> None:
        self._tried(partial(obs.put, self._store, self._at(path), data), "write", path)

    def remove(self, path: str) -> None:
        def action() -> None:
            try:
                obs.delete(self._store, self._at(path))
            except FileNotFoundError:
                return

        self._tried(action, "delete", path)

    def exists(self, path: str) -> bool:
        return self._tried(partial(_is_there, self._store, self._at(path)), "read", path)

    def names(self, folder: str) -> list[str]:
        found = self._listed(folder)
        paths = [*found["common_prefixes"], *(one["path"] for one in found["objects"])]
        return sorted({path.rstrip("/").rpartition("/")[2] for path in paths})

    def sizes(self, folder: str) -> dict[str, int]:
        found = self._listed(folder)["objects"]
        return {one["path"].rpartition("/")[2]: one["size"] for one in found}

    def holding(self, folder: str, name: str) -> list[str]:
        start = f"{self._at(folder)}/"
        parts = (path.removeprefix(start).split("/") for path in self._below(folder))
        # <folder>/<sub>/<name>, not deeper
        return sorted(part[0] for part in parts if len(part) == 2 and part[1] == name)

    def walk(self, folder: str) -> list[Entry]:
        root = f"{self._place.path}/" if self._place.path else ""
        found = sorted(self._objects(folder), key=lambda one: str(one["path"]))
        return [
            Entry(one["path"].removeprefix(root), one["size"], one["last_modified"].timestamp())
            for one in found
        ]

    def remove_folder(self, folder: str) -> None:
        self.remove(f"{folder}/{MANIFEST}")  # first: without it nothing is committed
        self._forget(folder)

    def download(self, path: str, place: Path, within: str) -> None:
        self._download(path, place)

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{_SCRATCH_PREFIX}{scratch_name()}-"))

    def clear_scratch(self) -> None:
        clear_dead(Path(tempfile.gettempdir()), _SCRATCH_PREFIX)

    def dead_scratch(self) -> list[Path]:
        return find_dead(Path(tempfile.gettempdir()), _SCRATCH_PREFIX)

    def adopt(self, folder: Path) -> Path:
        return folder

    def check_free(self, target: str, folders: Iterable[str]) -> None:
        path = f"{target}/{MANIFEST}"
        if self._below(path):
            raise StoreError(f"{self.shown(path)}: in the way of a manifest; delete it")

    def publish(self, folder: Path, target: str, attempt: str) -> bool:
        names = sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )
        try:
            for name in names:
                if name != MANIFEST:
                    self._upload(folder / name, self.member(target, attempt, name))
            landed = self._create(target, (folder / MANIFEST).read_bytes(), attempt)
        except StoreError:
            self._forget(f"{target}/{attempt}")
            raise
        if not landed:
            self._forget(f"{target}/{attempt}")
        return landed

    def member(self, target: str, attempt: str, name: str) -> str:
        return f"{target}/{name}" if name == MANIFEST else f"{target}/{attempt}/{name}"

    def fetch(self, target: str, manifest: dict[str, Any], cache: Path) -> Path:
        attempt = str(manifest["attempt"])
        # the attempt in the path: a store emptied and filled again cannot be mistaken for itself
        place = cache / target / attempt
        if place.is_dir():
            try:
                verify(place, manifest, str(place), sizes_only=attempt in self._verified)
                self._verified.add(attempt)
                return place
            except StoreError as error:
                log.warning("the copy kept on this machine is damaged (%s); fetched again", error)
                shutil.rmtree(place)
        aside = cache / "tmp" / uuid4().hex
        with explained("write", str(place)):
            try:
                for name in [*manifest["files"], MANIFEST]:
                    self._download(self.member(target, attempt, name), aside / name)
                verify(aside, manifest, self.shown(f"{target}/{attempt}"))
                place.parent.mkdir(parents=True, exist_ok=True)
                if not place.is_dir():
                    aside.rename(place)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        self._verified.add(attempt)
        return place

    def check(self, target: str, manifest: dict[str, Any]) -> None:
        place = f"{target}/{manifest['attempt']}"
        shown = self.shown(place)
        sizes = {one.path.removeprefix(f"{place}/"): one.bytes for one in self.walk(place)}
        check_names(sizes.keys(), manifest, shown)
        for name, expected in manifest["files"].items():
            check_size(f"{shown}/{name}", sizes[name], expected)
            check_sum(f"{shown}/{name}", self._checksum(f"{place}/{name}"), expected)

    def check_root(self) -> None:
        """Raise StoreError if the bucket or folder cannot be reached or is not one."""
        path = self._place.path

        def action() -> bool:
            is_file = bool(path) and _is_there(self._store, path)
            obs.list_with_delimiter(self._store, path or None)
            return is_file

        if self._tried(action, "reach", "", FIRST_LOOK):
            raise StoreError(f"{self._place.shown}: not a folder but a file")

    def _at(self, path: str) -> str:
        return "/".join(part for part in (self._place.path, path) if part)

    def _listed(self, folder: str) -> Any:
        at = self._at(folder) or None
        return self._tried(partial(obs.list_with_delimiter, self._store, at), "list", folder)

    def _below(self, folder: str) -> list[str]:
        return [one["path"] for one in self._objects(folder)]

    def _objects(self, folder: str) -> list[Any]:
        def action() -> list[Any]:
            at = self._at(folder)
            return [
                one for piece in obs.list(self._store, f"{at}/" if at else None) for one in piece
            ]

        return self._tried(action, "list", folder)

    def _create(self, target: str, data: bytes, attempt: str) -> bool:
        path = f"{target}/{MANIFEST}"

        def action() -> bool:
            try:
                obs.put(self._store, self._at(path), data, mode="create")
            except AlreadyExistsError:
                return False
            return True

        # if an answer was lost and the request was repeated, our own one is there
        return self._tried(action, "write", path) or self._attempt(target) == attempt

    def _upload(self, source: Path, path: str) -> None:
        def action() -> None:
            with source.open("rb") as file:
                obs.put(self._store, self._at(path), file)

        self._tried(action, "write", path)

    def _download(self, path: str, place: Path) -> None:
        def action() -> None:
            place.parent.mkdir(parents=True, exist_ok=True)
            reader = obs.open_reader(self._store, self._at(path), buffer_size=PIECE)
            with place.open("wb") as file:
                while len(piece := reader.read(PIECE)):
                    file.write(piece)

        self._tried(action, "read", path)

    def _checksum(self, path: str) -> str:
        def action() -> str:
            found = hashlib.sha256()
            reader = obs.open_reader(self._store, self._at(path), buffer_size=PIECE)
            while len(piece := reader.read(PIECE)):
                found.update(piece)
            return found.hexdigest()

        return self._tried(action, "read", path)

    def _forget(self, folder: str) -> None:
        for path in self._below(folder):
            self._tried(partial(obs.delete, self._store, path), "delete", folder)

    def _attempt(self, target: str) -> str | None:
        path = f"{target}/{MANIFEST}"
        data = self.read(path)
        return None if data is None else parse_manifest(data, self.shown(path)).get("attempt")

    def _tried(
        self, action: Callable[[], T], verb: str, path: str, patience: Patience | None = None
    ) -> T:
        shown, reason = self.shown(path), partial(_reason, place=self._place)
        patient = patience or self._patience
        with explained(verb, shown):
            try:
                return patient.try_again(action, _may_pass, f"{verb} {shown}", reason)
            except (BaseError, OSError, ValueError) as error:
                if getattr(error, "errno", None) is not None:
                    raise  # of this machine's disk
                raise StoreError(f"cannot {verb} {shown}: {reason(error)}") from error


def _is_there(store: ObjectStore, path: str) -> bool:
    try:
        obs.head(store, path)
    except FileNotFoundError:
        return False
    return True


def _may_pass(error: Exception) -> bool:
    # obstore has a class for each final error, but not for other answers of 4xx
    status = _STATUS.search(str(error))
    return isinstance(error, GenericError) and (status is None or status[1] in _PASSING)


def _is_bucket_missing(error: Exception) -> bool:
    return any(words in str(error) for words in _NO_BUCKET)


def _reason(error: Exception, place: Place) -> str:
    whole = str(error)
    answer = _ANSWER.search(whole)
    # not the address: it may hold a signature
    first = re.sub(r"https?://\S+", "the server", whole.partition("\n")[0]).strip()
    said = f"{answer[1]}: {answer[2]}".replace("\n", " ") if answer else first
    if _is_bucket_missing(error):
        return f"there is no {place.bucket!r}; create it first"
    if _AWS_CHAIN in first:
        return f"no AWS credentials: {first.partition(_AWS_CHAIN)[2].partition(': ')[2]}"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"access denied ({said}). Check what these credentials may do, or give others"
    if any(host in whole for host in _METADATA):
        return f"no credentials were found: {CREDENTIALS[place.kind]}"
    if "ConnectError" in whole or "dns error" in whole:
        return "cannot connect to the server. Is there a network, and is its address right?"
    return said


def is_remote(uri: str) -> bool:
    """Tell whether a store's URI is of an object store and not of a folder or mount."""
    return "://" in uri


def open_files(location: str | Path) -> tuple[Files, str]:
    """Return the file operations at a location and its absolute URI (a path if local).

    Makes a local folder that is missing. Raises StoreError if the location is unusable.
    """
    text = str(location)
    if not text:
        raise StoreError("the store needs a place: a folder or a URI such as s3://bucket/prefix")
    if "://" not in text:
        scheme, mark, rest = text.partition(":/")
        if mark and scheme in SCHEMES:  # a Path makes this of a URI, too
            raise StoreError(f"store {text!r}: did you mean '{scheme}://{rest}'?")
        return _open_local(Path(text))
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise StoreError(
            f"store {text!r}: {unknown('scheme', parts.scheme, SCHEMES)}, or a folder (where "
            "anything else is mounted)"
        )
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StoreError(f"store {text!r}: file:///absolute/path has no host {parts.netloc!r}")
        return _open_local(Path(unquote(parts.path)))
    text = with_region(text)
    files = RemoteFiles(parse_place(text))
    files.check_root()
    return files, text


def reopen_files(uri: str) -> Files:
    """Return the file operations at a URI that `open_files` gave; no request is made.

    The location may be away for a moment, and the operations themselves are patient.
    """
    return RemoteFiles(parse_place(uri)) if "://" in uri else LocalFiles(Path(uri))


def _open_local(path: Path) -> tuple[Files, str]:
    root = expanded(path).absolute()
    if root.exists() and not root.is_dir():
        raise StoreError(f"store {root}: not a folder but a file")
    with explained("open the store", str(root)):
        root.mkdir(parents=True, exist_ok=True)
    return LocalFiles(root), str(root)
