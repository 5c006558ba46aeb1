"""Where a store is: a folder or a URI turned into file operations."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from recipe_ray.base.errors import StoreError, unknown
from recipe_ray.stages.filesystem import Files, LocalFiles, explained
from recipe_ray.stages.remote import RemoteFiles

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
