"""Opening files that somebody else made: regular files, inside their folder, of a stated size.

A name in a foreign folder may be a link to a file of ours, a named pipe that never answers, or an
endless device. A file is read only after its kind, its place and its size are known.
"""

import os
import stat
from io import BufferedReader
from pathlib import Path

from recipe_ray.base.errors import UserError
from recipe_ray.base.fingerprint import stream_checksum

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

# how files of other kinds begin
_STARTS = (
    (b"PK\x03\x04", "an archive (ZIP), as torch.save writes pickles"),
    (b"\x80\x02", "a pickle"),
    (b"\x89HDF", "a file of HDF5, as TensorFlow writes weights"),
    (b"GGUF", "a file of GGUF"),
    (b"\x1f\x8b", "compressed by gzip; unpack it"),
)
_PAGES = (b"<!doctype", b"<html", b"<?xml")

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")  # of weights
_GIT_LFS = b"version https://git-lfs.github.com/spec/"


def open_foreign(
    path: Path, limit: int, *, within: Path | None = None, error: type[UserError] = UserError
) -> BufferedReader:
    """Open a regular file of at most `limit` bytes for reading.

    With `within` the file must be in that folder, after every link is followed; what is in the
    `blobs` of the hub's cache counts as in the snapshot that links to it. Without it the user named
    the file, and links may lead anywhere. Hard links are ordinary files. Raises `error`, naming
    the file, if it is missing, of another kind, outside, too large or unreadable.
    """
    place = _resolved(path, error)
    if within is not None and not _is_inside(place, within):
        what = "a link out of its folder" if path.is_symlink() else f"it lies outside of {within}"
        raise error(f"{path}: {what}, at {place}; put the file itself there")
    try:
        file = open_regular(path, place=place, error=error)
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    try:
        _check_size(path, os.fstat(file.fileno()).st_size, limit, error)
        _check_fetched(path, os.pread(file.fileno(), len(_GIT_LFS), 0), error)
    except OSError as problem:  # from a failing disk, or from a file that is one only in name
        file.close()
        raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    except BaseException:
        file.close()
        raise
    return file


def open_regular(
    path: Path, *, place: Path | None = None, error: type[UserError] = UserError
) -> BufferedReader:
    """Open a file for reading, at `place` if its links were followed already.

    Raises `error` for a pipe, a device, a folder; OSError as `open` does.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if place else 0)
    # a device may act when it is opened, so its kind is asked first, and once more when open
    _check_kind(path, (place or path).stat(follow_symlinks=place is None), error)
    handle = os.open(place or path, flags)
    try:
        _check_kind(path, os.fstat(handle), error)
    except BaseException:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_foreign(
    path: Path, limit: int, *, within: Path | None = None, error: type[UserError] = UserError
) -> bytes:
    """Return the bytes of a file that `open_foreign` opens, even if it grows meanwhile."""
    with open_foreign(path, limit, within=within, error=error) as file:
        try:
            content = file.read(limit + 1)
        except OSError as problem:
            raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    _check_size(path, len(content), limit, error)
    return content


def foreign_checksum(
    path: Path, limit: int, *, within: Path | None = None, error: type[UserError] = UserError
) -> str:
    """Return the SHA-256 of a file that `open_foreign` opens."""
    with open_foreign(path, limit, within=within, error=error) as file:
        try:
            return stream_checksum(file)
        except OSError as problem:
            raise error(f"{path}: cannot be read: {problem.strerror or problem}") from problem


def kind_by_start(start: bytes) -> str | None:
    """Return what a file is that begins so, if its kind is often found in another's place.

    None: its kind is not known here.
    """
    if start.lstrip().lower().startswith(_PAGES):
        return "a web page; download the file itself"
    return next((kind for begins, kind in _STARTS if start.startswith(begins)), None)


def is_web_page(start: bytes) -> bool:
    """Tell whether a file that begins so is a page, which sites send in place of a file."""
    return start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES[:2])


def is_there(path: Path) -> bool:
    """Tell whether a name is taken, also by a broken link, a folder or a pipe.

    `Path.is_file` would pass over these as if they were missing, and something else be read.
    """
    return os.path.lexists(path)


def _resolved(path: Path, error: type[UserError]) -> Path:
    try:
        return path.resolve(strict=True)
    except FileNotFoundError:
        what = f"a link to {path.readlink()}, which" if path.is_symlink() else "it"
        raise error(f"{path}: {what} does not exist") from None
    # a loop of links (RuntimeError before Python 3.13), a zero in a name (ValueError)
    except (OSError, RuntimeError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise error(f"{path}: cannot be read: {reason}") from problem


def _is_inside(place: Path, folder: Path) -> bool:
    home = folder.resolve()
    # the cache of the hub: models--A--B/snapshots/COMMIT/... are links into models--A--B/blobs
    blobs = [at.parent.parent / "blobs" for at in (home, *home.parents) if _is_snapshot(at)]
    return any(place.is_relative_to(root) for root in (home, *blobs[:1]))


def _is_snapshot(folder: Path) -> bool:
    return folder.parent.name == "snapshots"


def _check_kind(path: Path, found: os.stat_result, error: type[UserError]) -> None:
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        what = _KINDS.get(kind, "no file")
        raise error(f"{path}: cannot be read: it is {what}; expected a regular file")


def _check_fetched(path: Path, start: bytes, error: type[UserError]) -> None:
    if start == _GIT_LFS:
        raise error(
            f"{path}: a pointer of Git LFS, not the file itself; run `git lfs pull` in the "
            "repository, or download the file again"
        )


def _check_size(path: Path, size: int, limit: int, error: type[UserError]) -> None:
    if size > limit:
        raise error(f"{path}: it has {size:,} bytes; allowed here: at most {limit:,}")
