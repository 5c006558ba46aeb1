"""Image files on this machine: a folder of class folders, and what a path given by the user is.

Not where images are decoded; a source streams their encoded bytes.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from recipe_ray.base.errors import DataError
from recipe_ray.base.fingerprint import file_checksum
from recipe_ray.data.sources import FileSource, Source, existing
from recipe_ray.data.tar_shards import Note, TarSource, in_batches

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
FILE_LIMIT = 64 * 2**20  # bytes of one image file
_SHARDS = (".parquet", ".tar")


def open_images(path: str | Path, owner: str, note: Note, *, by_name: bool = False) -> Source:
    """Return the source of images at a path, each with a label or a caption.

    Allowed: a Parquet file or WebDataset tar, a folder of shards of one of them, and, with labels,
    a folder with one folder a class. `by_name`: there the label is the class folder's name.

    Raises DataError for a path that does not exist or is none of these.
    """
    place = existing(path, owner)
    if place.is_file():
        return _shards((place,), owner, note)
    entries = [entry for entry in sorted(place.iterdir()) if not entry.name.startswith(".")]
    folders = [entry for entry in entries if entry.is_dir()]
    files = [entry for entry in entries if not entry.is_dir()]
    if folders and files:
        raise DataError(
            f"{owner}: the folder {place} mixes class folders ({folders[0].name}, ...) and files "
            f"({files[0].name}, ...); keep one of {_allowed(note)}"
        )
    if not folders:
        return _shards(tuple(files), owner, note, place)
    if note != "label":
        raise DataError(
            f"{owner}: {place} is a folder of folders, which has no captions; allowed: "
            f"{_allowed(note)}"
        )
    return ImageFolder(place, owner, by_name)


def _shards(files: tuple[Path, ...], owner: str, note: Note, folder: Path | None = None) -> Source:
    suffixes = {file.suffix for file in files}
    if len(suffixes) != 1 or not suffixes <= set(_SHARDS):
        found = ", ".join(sorted(suffixes)) or "nothing"
        raise DataError(f"{owner}: {folder or files[0]} holds {found}; allowed: {_allowed(note)}")
    return TarSource(files, note, owner) if suffixes == {".tar"} else FileSource(files, owner)


def _allowed(note: Note) -> str:
    folders = ", a folder with one folder of images a class" if note == "label" else ""
    return f".parquet or .tar (WebDataset) shards of one kind{folders}"


@dataclass(frozen=True)
class ImageFolder:
    """Images in the layout of ImageNet: `root/class/image.jpg`; columns `image` and `label`.

    Labels count the class folders from 0 in the order of their names (numbers by value). With
    `by_name` they are the names themselves, a number without its leading zeros.
    """

    root: Path
    owner: str
    by_name: bool = False

    def identity(self) -> dict[str, Any]:
        """Return the checksum over the sorted names in the folder and the files' own checksums."""
        return {"source": "image-folder", "sha256": _checksum(self.root, self._stamps())}

    def describe(self) -> str:
        """Return the folder's name, its classes and the start of the checksum."""
        count = len(self._classes())
        return f"{self.root.name}/ ({count} classes), SHA-256 {self.identity()['sha256'][:12]}"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the images class by class.

        Raises DataError for an empty class folder, and for a file that is no image by its name, too
        large or unreadable.
        """
        yield from in_batches(self._rows(), "label")

    def _rows(self) -> Iterator[tuple[bytes, Any]]:
        for label, folder in enumerate(self._classes()):
            named = _short(folder.name) if self.by_name else label
            yield from ((_read(file, self.owner), named) for file in self._images(folder))

    def _classes(self) -> list[Path]:
        folders = _visible(self.root)
        numbered = all(folder.name.isdecimal() for folder in folders)
        return sorted(folders, key=lambda f: int(f.name)) if numbered else folders

    def _images(self, folder: Path) -> list[Path]:
        files = _visible(folder)
        allowed = ", ".join(IMAGE_SUFFIXES)
        for file in files:
            if file.suffix.lower() not in IMAGE_SUFFIXES:
                raise DataError(f"{self.owner}: {file} is no image; allowed here: {allowed}")
        if not files:
            raise DataError(f"{self.owner}: the class folder {folder} has no image ({allowed})")
        return files

    def _stamps(self) -> tuple[tuple[str, int, int], ...]:
        files = (file for folder in self._classes() for file in self._images(folder))
        named = ((file.relative_to(self.root).as_posix(), file.stat()) for file in files)
        return tuple((name, found.st_size, found.st_mtime_ns) for name, found in named)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _short(name: str) -> str:
    return str(int(name)) if name.isdecimal() else name


def _read(file: Path, owner: str) -> bytes:
    try:
        size = file.stat().st_size
        if size > FILE_LIMIT:
            raise DataError(f"{owner}: {file} has {size:,} bytes; allowed: {FILE_LIMIT:,}")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{owner}: {file} cannot be read: {error.strerror}") from error


@lru_cache(maxsize=16)
def _checksum(root: Path, stamps: Iterable[tuple[str, int, int]]) -> str:
    # sizes and times are only there to forget the sum of a folder that has changed since
    lines = (f"{file_checksum(root / name)}  {name}\n" for name in sorted(s[0] for s in stamps))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
