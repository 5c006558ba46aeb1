"""The same file operations on any pyarrow file system: S3, GCS, HDFS and the like.

Object stores cannot rename, so an artifact's files go under a name of their own attempt and its
manifest, written last, says which attempt counts: whoever reads sees one whole attempt or none.

Where a store is: a folder or a URI turned into file operations.
"""

import logging
import shutil
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs

from recipe_ray.base.errors import StoreError, unknown
from recipe_ray.store.files import (
    Files,
    LocalFiles,
    Patience,
    clear_dead,
    explained,
    passes_remotely,
    scratch_name,
)
from recipe_ray.store.manifest import MANIFEST, parse_manifest, verify

T = TypeVar("T")

PIECE = 8 * 1024 * 1024  # bytes
_SCRATCH_PREFIX = "recipe-ray-work-"

log = logging.getLogger(__name__)


class RemoteFiles:
    """`Files` below `root` of a pyarrow file system; what fails for a while is tried again."""

    def __init__(
        self, filesystem: Any, root: str, shown_root: str, patience: Patience | None = None
    ) -> None:
        self._fs = filesystem
        self._root = root.rstrip("/")
        self._shown_root = shown_root.rstrip("/")
        self._patience = patience or Patience()
        self._verified: set[str] = set()

    def shown(self, path: str) -> str:
        return f"{self._shown_root}/{path}" if path else self._shown_root

    def arrow(self) -> tuple[pafs.FileSystem, str]:
        return self._fs, self._root

    def read(self, path: str) -> bytes | None:
        def action() -> bytes | None:
            try:
                with self._fs.open_input_stream(self._at(path)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._tried(action, "read", path)

    def write(self, path: str, data: bytes) -> None:
        def action() -> None:
            with self._output(self._at(path)) as stream:
                stream.write(data)

        self._tried(action, "write", path)

    def remove(self, path: str) -> None:
        def action() -> None:
            try:
                self._fs.delete_file(self._at(path))
            except FileNotFoundError:
                return

        self._tried(action, "delete", path)

    def exists(self, path: str) -> bool:
        info = self._tried(partial(self._fs.get_file_info, self._at(path)), "read", path)
        return bool(info.type == pafs.FileType.File)

    def names(self, folder: str) -> list[str]:
        return sorted({info.base_name for info in self._listed(folder, recursive=False)})

    def holding(self, folder: str, name: str) -> list[str]:
        found = set()
        for info in self._listed(folder, recursive=True):
            parts = info.path.split("/")
            # <folder>/<sub>/<name>, not deeper
            if parts[-1] == name and "/".join(parts[:-2]) == self._at(folder):
                found.add(parts[-2])
        return sorted(found)

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(prefix=f"{_SCRATCH_PREFIX}{scratch_name()}-"))

    def clear_scratch(self) -> None:
        clear_dead(Path(tempfile.gettempdir()), _SCRATCH_PREFIX)

    def adopt(self, folder: Path) -> Path:
        return folder

    def check_free(self, target: str, folders: Iterable[str]) -> None:
        path = f"{target}/{MANIFEST}"
        info = self._tried(partial(self._fs.get_file_info, self._at(path)), "read", path)
        if info.type == pafs.FileType.Directory:
            raise StoreError(f"{self.shown(path)}: in the way of a manifest; delete it")

    def publish(self, folder: Path, target: str, attempt: str) -> bool:
        names = sorted(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )
        try:
            for name in names:
                if name != MANIFEST:
                    self._upload(folder / name, self.member(target, attempt, name))
            if self.exists(f"{target}/{MANIFEST}"):
                self._forget(f"{target}/{attempt}")
                return False
            self.write(f"{target}/{MANIFEST}", (folder / MANIFEST).read_bytes())
        except StoreError:
            self._forget(f"{target}/{attempt}")
            raise
        # two writers within one round trip: the manifest that stayed decides, both are whole
        return self._attempt(target) == attempt

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

    def check_root(self) -> None:
        """Raise StoreError where the bucket or folder cannot be reached or is not one."""
        bucket = self._root.split("/")[0]
        for path in dict.fromkeys((bucket, self._root)):
            with explained("reach", self._shown_root):  # the client library tries several times
                info = self._fs.get_file_info(path)
            if info.type == pafs.FileType.File:
                raise StoreError(f"{self._shown_root}: not a folder but a file")
            if path == bucket and info.type == pafs.FileType.NotFound:
                raise StoreError(f"{self._shown_root}: there is no {bucket!r}; create it first")

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _output(self, path: str) -> Any:
        try:
            return self._fs.open_output_stream(path)
        except FileNotFoundError:
            # object stores need no folders, HDFS does
            self._fs.create_dir(path.rpartition("/")[0], recursive=True)
            return self._fs.open_output_stream(path)

    def _listed(self, folder: str, *, recursive: bool) -> list[Any]:
        selector = pafs.FileSelector(self._at(folder), allow_not_found=True, recursive=recursive)
        return list(self._tried(partial(self._fs.get_file_info, selector), "list", folder))

    def _upload(self, source: Path, path: str) -> None:
        def action() -> None:
            with source.open("rb") as file, self._output(self._at(path)) as stream:
                shutil.copyfileobj(file, stream, PIECE)

        self._tried(action, "write", path)

    def _download(self, path: str, place: Path) -> None:
        def action() -> None:
            place.parent.mkdir(parents=True, exist_ok=True)
            with self._fs.open_input_stream(self._at(path)) as stream, place.open("wb") as file:
                shutil.copyfileobj(stream, file, PIECE)

        self._tried(action, "read", path)

    def _forget(self, folder: str) -> None:
        for info in self._listed(folder, recursive=True):
            if info.type == pafs.FileType.File:
                self._tried(partial(self._fs.delete_file, info.path), "delete", folder)

    def _attempt(self, target: str) -> str | None:
        path = f"{target}/{MANIFEST}"
        data = self.read(path)
        return None if data is None else parse_manifest(data, self.shown(path)).get("attempt")

    def _tried(self, action: Callable[[], T], verb: str, path: str) -> T:
        what = f"{verb} {self.shown(path)}"
        with explained(verb, self.shown(path)):
            return self._patience.try_again(action, passes_remotely, what)


SCHEMES = ("file", "s3", "gs", "gcs", "abfs", "abfss", "hdfs")


def is_remote(uri: str) -> bool:
    """Tell whether a store's URI is of an object store rather than of a folder or mount."""
    return "://" in uri


def open_files(location: str | Path) -> tuple[Files, str]:
    """Return the file operations at a location and its absolute URI (a path where local).

    Makes a local folder that is missing. Raises StoreError where the location is unusable.
    """
    text = str(location)
    if not text:
        raise StoreError("the store needs a place: a folder or a URI such as s3://bucket/prefix")
    if "://" not in text:
        scheme, mark, rest = text.partition(":/")
        if mark and scheme in SCHEMES:  # also what becomes of a URI made into a Path
            raise StoreError(f"store {text!r}: did you mean '{scheme}://{rest}'?")
        return _open_local(Path(text))
    parts = urlsplit(text)
    if parts.scheme not in SCHEMES:
        raise StoreError(f"store {text!r}: {unknown('scheme', parts.scheme, SCHEMES)}, or a folder")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise StoreError(f"store {text!r}: file:///absolute/path has no host {parts.netloc!r}")
        return _open_local(Path(unquote(parts.path)))
    return _open_remote(text), text


def reopen_files(uri: str) -> Files:
    """Return the file operations at a URI that `open_files` gave; the location is not asked.

    It may be away for a moment, and the operations themselves are patient.
    """
    return _remote(uri) if "://" in uri else LocalFiles(Path(uri))


def file_sizes(filesystem: pafs.FileSystem, root: str, folder: str) -> dict[str, int]:
    """Return the bytes of every file in a folder by name, none where it does not exist."""
    where = f"{root}/{folder}"
    with explained("list", where):
        found = filesystem.get_file_info(pafs.FileSelector(where, allow_not_found=True))
    return {info.base_name: info.size for info in found if info.is_file}


def _open_local(path: Path) -> tuple[Files, str]:
    root = path.expanduser().absolute()
    if root.exists() and not root.is_dir():
        raise StoreError(f"store {root}: not a folder but a file")
    with explained("open the store", str(root)):
        root.mkdir(parents=True, exist_ok=True)
    return LocalFiles(root), str(root)


def _open_remote(uri: str) -> Files:
    files = _remote(uri)
    files.check_root()
    return files


def _remote(uri: str) -> RemoteFiles:
    parts = urlsplit(uri)
    # neither credentials nor connection options belong in messages
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if not parts.netloc:
        raise StoreError(f"store {shown}: no bucket or host after {parts.scheme}://")
    try:
        filesystem, root = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(f"cannot open the store {shown}: {error}") from error
    return RemoteFiles(filesystem, root, shown)
