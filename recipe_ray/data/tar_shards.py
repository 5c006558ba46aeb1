"""WebDataset: tar archives whose members of one key make a sample, streamed and never extracted.

A key is a member's path up to the first dot of its last part. The last part of the name says what
it is: an image (`x.jpg`, or `x.image.jpg`), a label (.cls: a number from 0, or a class's name), a
caption (.txt), or both in an object (.json with `label` or `caption`). Members of a sample follow
each other; other members are skipped. A path only labels a sample here: no file of that path is
opened or written.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from recipe_ray.base.errors import DataError
from recipe_ray.base.limits import IMAGE, TEXT
from recipe_ray.data.content import described_shards, opened, packed_as, shards_checksum
from recipe_ray.data.formats import label_number

if TYPE_CHECKING:
    import pyarrow as pa

Note = Literal["label", "caption"]  # what is known of an image, and its column
IMAGES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "gif", "tif", "tiff", "bmp"),
    *("ppm", "pgm", "pbm", "pnm"),
)
NOTES: dict[Note, str] = {"label": "cls", "caption": "txt"}
_FORM: dict[Note, str] = {
    "label": "it is an integer from 0 or a class's name",
    "caption": "it is UTF-8 text",
}
_MAX_LABEL = 2**31
_NAME_LENGTH = 100  # characters of a class's name
_MAX_PARTS = 100  # members of one sample that are read
_END = 1024  # zero bytes
_BATCH_ROWS = 256
_BATCH_BYTES = 32 * 2**20

_Member = tuple[str, str, bytes]  # key, what it is, content


@dataclass(frozen=True)
class TarSource:
    """Tar shards in the order of their names; columns `image` and `label` or `caption`.

    Labels that are names count the names of all shards from 0 in their order, as class folders do;
    `by_name` gives all labels as they are written.
    """

    files: tuple[Path, ...]
    note: Note
    owner: str
    by_name: bool = False
    folder: Path | None = None  # none of the files may lead out of it

    def identity(self) -> dict[str, Any]:
        """Return the SHA-256 of the file, or of all shards' sums in order."""
        whole = shards_checksum(self.files, self.owner, self.folder)
        return {"source": "webdataset", "sha256": whole}

    def describe(self) -> str:
        """Return the file name, or folder and number of shards, with the start of the checksum."""
        return described_shards(self.files, self.identity()["sha256"])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the samples of all shards.

        Raises DataError for an incomplete tar, a member over `IMAGE` or `TEXT`, an image
        without its note, a note that is not valid, labels of names and numbers, and a shard
        without any sample.
        """
        if self.note == "caption" or self.by_name:
            notes = ((image, str(note)) for image, note, _ in self._samples())
            yield from in_batches(notes, self.note)
        else:
            yield from in_batches(self._numbered(), self.note)

    def _numbered(self) -> Iterator[tuple[bytes, int]]:
        numbers: dict[Any, int] = {}
        for image, note, where in self._samples():
            if isinstance(note, str) and not numbers:  # one more pass, because any may come last
                numbers = self._class_numbers(where)
            if isinstance(note, str) != bool(numbers):
                raise DataError(f"{where}: some labels are numbers and some are names; keep one")
            yield image, numbers[note] if numbers else note

    def _class_numbers(self, where: str) -> dict[Any, int]:
        found = {note for _, note, _ in self._samples()}
        if any(isinstance(note, int) for note in found):
            raise DataError(f"{where}: some labels are numbers and some are names; keep one")
        return {name: number for number, name in enumerate(sorted(found))}

    def _samples(self) -> Iterator[tuple[bytes, Any, str]]:
        for file in self.files:
            count = 0
            for key, members in groupby(self._members(file), lambda m: m[0]):
                where = f"{self._where(file)}: sample {_shown(key)}"
                parts = _parts(members, where)
                image = _image(parts, where)
                if image is not None:
                    count += 1
                    yield image, self._noted(parts, where), where
            if not count:
                raise DataError(
                    f"{self._where(file)} has no sample; needed: members such as 000.jpg and "
                    f"000.{NOTES[self.note]}"
                )

    def _where(self, file: Path) -> str:
        return f"{self.owner}: {file}"

    def _members(self, file: Path) -> Iterator[_Member]:
        with opened(file, self.owner, self.folder) as content:
            yield from _members(content, self._where(file))

    def _noted(self, parts: dict[str, bytes], where: str) -> Any:
        ending = NOTES[self.note]
        try:
            if ending in parts:
                return _note(parts[ending].decode(), self.note)
            if "json" in parts:
                return _note(json.loads(parts["json"])[self.note], self.note)
        except (ValueError, KeyError, TypeError, RecursionError):
            # without its cause, whose message may show the content
            raise DataError(
                f"{where}: its {self.note} cannot be read; {_FORM[self.note]}"
            ) from None
        raise DataError(f"{where} has no .{ending}, nor a .json with {self.note!r}")


def _parts(members: Iterable[_Member], where: str) -> dict[str, bytes]:
    """Return a sample's members by kind; a short name takes precedence over a longer one."""
    parts: dict[str, bytes] = {}
    for _, kind, content in members:
        parts[kind] = content
        if len(parts) > _MAX_PARTS:
            raise DataError(f"{where} has over {_MAX_PARTS} members; is the key before the dot?")
    for kind in sorted(parts, key=lambda name: name.count(".")):
        last = kind.rpartition(".")[2]
        if last not in IMAGES:
            parts.setdefault(last, parts[kind])
    return parts


def _image(parts: dict[str, bytes], where: str) -> bytes | None:
    plain = [kind for kind in IMAGES if kind in parts]
    named = [kind for kind in parts if kind.rpartition(".")[2] in IMAGES]
    chosen = plain[:1] or [kind for kind in named if kind.startswith("image.")][:1] or named
    if len(chosen) > 1:
        raise DataError(
            f"{where} has several images ({', '.join(map(_shown, chosen[:5]))}); name the one that "
            "counts x.jpg or x.image.jpg"
        )
    return parts[chosen[0]] if chosen else None


def _note(value: Any, note: Note) -> int | str:
    if note == "caption":
        if not isinstance(value, str):
            raise TypeError("a caption is text")
        return value
    number = label_number(value)
    if number is not None and number < _MAX_LABEL:
        return number
    name = value.strip() if isinstance(value, str) else ""
    # a name has a letter: -1 and 1.5 are wrong numbers
    if not name.isprintable() or len(name) > _NAME_LENGTH or not any(map(str.isalpha, name)):
        raise ValueError("a label counts classes or names one")
    return name


def in_batches(rows: Iterable[tuple[bytes, Any]], note: Note) -> Iterator[pa.RecordBatch]:
    """Yield (image, note) rows as record batches of bounded rows and bytes."""
    images: list[bytes] = []
    notes: list[Any] = []
    held = 0
    for image, known in rows:
        images.append(image)
        notes.append(known)
        held += len(image)
        if held >= _BATCH_BYTES or len(images) == _BATCH_ROWS:
            yield _batch(images, notes, note)
            images, notes, held = [], [], 0
    if images:
        yield _batch(images, notes, note)


def _batch(images: list[bytes], notes: list[Any], note: Note) -> pa.RecordBatch:
    import pyarrow as pa

    return pa.RecordBatch.from_pydict({"image": pa.array(images, pa.binary()), note: notes})


def _members(file: BufferedReader, where: str) -> Iterator[_Member]:
    wanted = {*IMAGES, *NOTES.values(), "json"}
    try:
        _check_end(file)
        # a stream of an uncompressed tar: no seeking, and no bomb to unpack
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                is_wanted = kind.rpartition(".")[2].lower() in wanted
                if key and is_wanted and member.isfile():
                    yield f"{folder}/{key}", kind.lower(), _content(tar, member, where)
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, MemoryError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where} cannot be read as an uncompressed tar: {error}") from error


def _check_end(content: BufferedReader) -> None:
    packing = packed_as(content.peek(4))
    if packing is not None:
        raise tarfile.ReadError(f"it is packed ({packing}); unpack it")
    # tarfile takes a tar that is cut off at a header as a whole one
    size = content.seek(0, 2)
    content.seek(max(0, size - _END))
    if content.read() != bytes(_END):
        raise tarfile.ReadError("it lacks the zeros that end a tar; is it cut off?")
    content.seek(0)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    limit = IMAGE if member.name.lower().endswith(IMAGES) else TEXT
    if member.size > limit.value:
        said = f"{where}: member {_shown(member.name)} has {member.size:,} bytes"
        raise limit.exceeded(said, limit.value)
    if member.issparse():
        raise DataError(f"{where}: member {_shown(member.name)} is sparse; pack it whole")
    stream = tar.extractfile(member)
    assert stream is not None, "a regular member has a content"
    content = stream.read()
    if len(content) < member.size:
        raise tarfile.ReadError("it ends within a member")
    return content


def _shown(name: str) -> str:
    return repr(name[-40:])
