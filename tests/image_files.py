"""The same few images as Parquet, tar and class folders, for tests of what reads them."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from image_samples import labelled_samples

from recipe_ray.data.images import ImageSample

CLASS_NAMES = ("ant", "bee", "cow", "dog")


def in_class_order(count: int = 12) -> list[ImageSample]:
    """Return images sorted by label, which is the order of a folder."""
    return sorted(labelled_samples(count), key=lambda sample: sample.label or 0)


def captioned(count: int = 6) -> list[ImageSample]:
    """Return images with a caption each."""
    return [
        ImageSample(sample.data, caption=f"a square, number {number}")
        for number, sample in enumerate(labelled_samples(count))
    ]


def as_parquet(file: Path, samples: Iterable[ImageSample]) -> Path:
    """Write a Parquet file with `image` and `label` or `caption`; return it."""
    notes = [(s.label if s.caption is None else s.caption) for s in samples]
    name = "caption" if isinstance(notes[0], str) else "label"
    pq.write_table(pa.table({"image": [s.data for s in samples], name: notes}), file)
    return file


def as_folder(folder: Path, samples: Iterable[ImageSample], names: tuple[str, ...]) -> Path:
    """Write `class name/number.png`; return the folder."""
    for number, sample in enumerate(samples):
        place = folder / names[sample.label or 0]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number:03d}.png").write_bytes(sample.data)
    return folder


def as_tar(file: Path, samples: Iterable[ImageSample]) -> Path:
    """Write a WebDataset shard with .cls or .txt; return it."""
    members = []
    for number, sample in enumerate(samples):
        note = ("cls", sample.label) if sample.caption is None else ("txt", sample.caption)
        members.append((f"part/{number:03d}.png", sample.data))
        members.append((f"part/{number:03d}.{note[0]}", str(note[1]).encode()))
    return tar_of(file, members)


def tar_of(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """Write a tar with these members; return it."""
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file
