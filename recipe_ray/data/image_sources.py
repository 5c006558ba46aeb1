"""Image files on this machine: a folder of class folders, and what a path given by the user is.

Images are not decoded here; a source streams their encoded bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_ray.base.errors import DataError
from recipe_ray.base.fingerprint import stream_checksum
from recipe_ray.base.foreign import is_there
from recipe_ray.base.limits import IMAGE
from recipe_ray.data.content import PACKINGS, opened, stamp
from recipe_ray.data.folders import check_not_versioned, is_hive, visible
from recipe_ray.data.sources import FileSource, Source, existing, open_path
from recipe_ray.data.tar_shards import IMAGES, Note, TarSource, in_batches

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_SUFFIXES = tuple(f".{kind}" for kind in IMAGES)
_SHARDS = (".parquet", ".tar")
_PACKED = (".zip", ".tgz", *(f"{kind}{packing}" for kind in _SHARDS for packing in PACKINGS))
_SAVED = ("state.json", "dataset_dict.json")  # by `datasets`


def open_images(path: str | Path, owner: str, note: Note, *, by_name: bool = False) -> Source:
    """Return the source of images at a path, with one label or caption per image.

    Allowed: a Parquet file or WebDataset tar, a folder of shards of one of them (also in a hive
    layout, or saved by `datasets`) and, with labels, a folder with one folder per class. `by_name`:
    the label is the name of the class.

    Raises DataError for a path that does not exist or is none of these.
    """
    place = existing(path, owner)
    if not place.is_dir():
        opened(place, owner).close()
        return _shards((place,), owner, note, by_name=by_name)
    if any(is_there(place / name) for name in _SAVED):
        return open_path(place, owner)
    check_not_versioned(place, owner)
    entries = visible(place, owner)
    folders = [entry for entry in entries if entry.is_dir()]
    # a README or a list of the classes is about the images
    others = [entry for entry in entries if not entry.is_dir()]
    files = [entry for entry in others if _is_image(entry) or _is_shard(entry)]
    if folders and files:
        raise DataError(
            f"{owner}: the folder {place} mixes class folders ({folders[0].name}, ...) and files "
            f"({files[0].name}, ...); keep one of {_allowed(note)}"
        )
    if not folders:
        return _shards(tuple(files or others), owner, note, by_name=by_name, folder=place)
    if is_hive(folders) and not any(map(_is_image, visible(folders[0], owner))):
        return open_path(place, owner)
    if note != "label":
        raise DataError(
            f"{owner}: {place} is a folder of folders, which has no captions; allowed: "
            f"{_allowed(note)}"
        )
    return ImageFolder(place, owner, by_name)


def _shards(
    files: tuple[Path, ...], owner: str, note: Note, *, by_name: bool, folder: Path | None = None
) -> Source:
    suffixes = {file.suffix.lower() for file in files}
    packed = next((file for file in files if file.name.lower().endswith(_PACKED)), None)
    if packed is not None:
        raise DataError(f"{owner}: {packed} is packed; unpack it. Allowed: {_allowed(note)}")
    if len(suffixes) != 1 or not suffixes <= set(_SHARDS):
        found = ", ".join(sorted(suffixes)) or "nothing"
        if any(map(_is_image, files)):
            found += ": images without a class or caption"
        raise DataError(f"{owner}: {folder or files[0]} holds {found}; allowed: {_allowed(note)}")
    if suffixes == {".tar"}:
        return TarSource(files, note, owner, by_name, folder)
    return FileSource(files, owner, folder)


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in IMAGE_SUFFIXES


def _is_shard(file: Path) -> bool:
    return file.suffix.lower() in _SHARDS or file.name.lower().endswith(_PACKED)


def _allowed(note: Note) -> str:
    folders = ", a folder with one folder of images per class" if note == "label" else ""
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
        return {
            "source": "image-folder",
            "sha256": _checksum(self.root, self.owner, self._stamps()),
        }

    def describe(self) -> str:
        """Return the folder's name, its classes and the start of the checksum."""
        count = len(self._classes())
        return f"{self.root.name}/ ({count} classes), SHA-256 {self.identity()['sha256'][:12]}"

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the images class by class.

        Raises DataError for an empty class folder, and for a file without an image's name, too
        large or unreadable.
        """
        yield from in_batches(self._rows(), "label")

    def _rows(self) -> Iterator[tuple[bytes, Any]]:
        for label, folder in enumerate(self._classes()):
            named = _short(folder.name) if self.by_name else label
            yield from ((self._read(file), named) for file in self._images(folder))

    def _classes(self) -> list[Path]:
        folders = [entry for entry in visible(self.root, self.owner) if entry.is_dir()]
        numbered = all(folder.name.isdecimal() for folder in folders)
        return sorted(folders, key=lambda f: int(f.name)) if numbered else folders

    def _images(self, folder: Path) -> list[Path]:
        files = visible(folder, self.owner)
        allowed = ", ".join(IMAGE_SUFFIXES)
        for file in files:
            if file.is_dir() and not _is_image(file):
                raise DataError(
                    f"{self.owner}: {file} is a folder within the class folder {folder.name}; give "
                    f"the folder of the class folders (is it {folder}?)"
                )
            if not _is_image(file):
                raise DataError(f"{self.owner}: {file} is not an image; allowed here: {allowed}")
        if not files:
            raise DataError(f"{self.owner}: the class folder {folder} has no image ({allowed})")
        return files

    def _stamps(self) -> tuple[tuple[str, int, int], ...]:
        files = (file for folder in self._classes() for file in self._images(folder))
        return tuple(
            (file.relative_to(self.root).as_posix(), *stamp(file, self.owner, self.root))
            for file in files
        )

    def _read(self, file: Path) -> bytes:
        with opened(file, self.owner, self.root) as content:
            limit = IMAGE.value
            try:
                data = content.read(limit + 1)
            except OSError as error:
                raise DataError(f"{self.owner}: {file} cannot be read: {error.strerror}") from error
        if len(data) > limit:
            raise IMAGE.exceeded(f"{self.owner}: {file} has over {limit:,} bytes", limit)
        return data


def _short(name: str) -> str:
    return str(int(name)) if name.isdecimal() else name


@lru_cache(maxsize=16)
def _checksum(root: Path, owner: str, stamps: Iterable[tuple[str, int, int]]) -> str:
    # sizes and times serve only to forget the sum of a folder that has changed since
    digest = hashlib.sha256()
    for name in sorted(name for name, _, _ in stamps):
        with opened(root / name, owner, root) as content:
            digest.update(f"{stream_checksum(content)}  {name}\n".encode())
    return digest.hexdigest()
