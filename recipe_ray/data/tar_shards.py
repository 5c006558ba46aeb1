"""WebDataset: tar archives whose members of one key make a sample, streamed and never extracted.

A key is a member's path up to the first dot of its last part; what follows says what it is: an
image (.jpg, .jpeg, .png, .webp), a label (.cls, an integer), a caption (.txt), or both in an object
(.json with `label` or `caption`). Members of a sample follow each other; other members are passed
over. Paths are labels of samples here, nothing is opened or written by them.
"""

import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from recipe_ray.base.errors import DataError
from recipe_ray.data.sources import TEXT_LIMIT, described_shards, shards_checksum

Note = Literal["label", "caption"]  # what is known of an image, and the column it stands in
IMAGES = ("jpg", "jpeg", "png", "webp")
NOTES: dict[Note, str] = {"label": "cls", "caption": "txt"}
MEMBER_LIMIT = 64 * 2**20  # bytes of an image; a note has at most as many as a text
_FORM: dict[Note, str] = {"label": "it is an integer from 0", "caption": "it is UTF-8 text"}
_MAX_LABEL = 2**31
_END = 1024  # zero bytes
_BATCH_ROWS = 256
_BATCH_BYTES = 32 * 2**20

_Member = tuple[str, str, bytes]  # key, what it is, content


@dataclass(frozen=True)
class TarSource:
    """Tar shards in the order of their names; columns `image` and `label` or `caption`."""

    files: tuple[Path, ...]
    note: Note
    owner: str

    def identity(self) -> dict[str, Any]:
        """Return the SHA-256 of the file, or of all shards' sums in order."""
        return {"source": "webdataset", "sha256": shards_checksum(self.files, self.owner)}

    def describe(self) -> str:
        """Return the file name, or folder and number of shards, with the start of the checksum."""
        return described_shards(self.files, self.identity()["sha256"])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the samples of all shards.

        Raises DataError for a file that is no whole tar, a member over `MEMBER_LIMIT`, an image
        without its note, a note that is none, and a shard without any sample.
        """
        yield from in_batches(self._samples(), self.note)

    def _samples(self) -> Iterator[tuple[bytes, Any]]:
        for file in self.files:
            count = 0
            for key, members in groupby(_members(file, self._where(file)), lambda m: m[0]):
                parts = {kind: content for _, kind, content in members}
                image = next((parts[kind] for kind in IMAGES if kind in parts), None)
                if image is not None:
                    count += 1
                    yield image, self._noted(parts, f"{self._where(file)}: sample {_shown(key)}")
            if not count:
                raise DataError(
                    f"{self._where(file)} has no sample; needed: members such as 000.jpg and "
                    f"000.{NOTES[self.note]}"
                )

    def _where(self, file: Path) -> str:
        return f"{self.owner}: {file}"

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


def _note(value: Any, note: Note) -> int | str:
    if note == "caption":
        if not isinstance(value, str):
            raise TypeError("a caption is text")
        return value
    label = int(value)
    if not 0 <= label < _MAX_LABEL:
        raise ValueError("a label counts classes")
    return label


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
    return pa.RecordBatch.from_pydict({"image": pa.array(images, pa.binary()), note: notes})


def _members(file: Path, where: str) -> Iterator[_Member]:
    wanted = {*IMAGES, *NOTES.values(), "json"}
    try:
        # a stream of an uncompressed tar: no seeking, and no bomb to unpack
        with tarfile.open(file, mode="r|") as tar:
            _check_end(file)
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, _, kind = name.partition(".")
                if kind.lower() in wanted and member.isfile():
                    yield f"{folder}/{key}", kind.lower(), _content(tar, member, where)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{where} cannot be read as an uncompressed tar: {error}") from error


def _check_end(file: Path) -> None:
    # tarfile takes a tar that is cut off at a header for a whole one
    with file.open("rb") as content:
        size = content.seek(0, 2)
        content.seek(max(0, size - _END))
        if content.read() != bytes(_END):
            raise tarfile.ReadError("it lacks the zeros that end a tar; is it cut off?")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> bytes:
    limit = MEMBER_LIMIT if member.name.lower().endswith(IMAGES) else TEXT_LIMIT
    if member.size > limit:
        raise DataError(
            f"{where}: member {_shown(member.name)} has {member.size:,} bytes; allowed: {limit:,}"
        )
    opened = tar.extractfile(member)
    assert opened is not None, "a regular member has a content"
    content = opened.read()
    if len(content) < member.size:
        raise tarfile.ReadError("it ends within a member")
    return content


def _shown(name: str) -> str:
    return repr(name[-40:])
