"""Images: a raw sample, its pixels at a model's input size, and batches of them.

Pixels stay uint8 until a model normalises them, and a trigger's patch is only a note on a row until
a batch is made, so that a test set with six triggers is held once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from recipe_ray.data.image_pixels import decoded_rgb
from recipe_ray.data.patches import stamp
from recipe_ray.data.rows import Ints
from recipe_ray.data.tokens import uniform

Pixels = NDArray[np.uint8]
PATCH = "patch"  # column [N, 3]: which patch a row carries, see `patches.code_of`
_OWN_COLUMNS = ("pixels", "index")
_IMAGE_LENGTH = 32  # an image counts as so many tokens where work is dealt out
_PADDING = 8  # a random crop moves an image by up to a `_PADDING`-th of its side


class ImageSample(NamedTuple):
    """One encoded image (PNG, JPEG, ...) and what is known of it."""

    data: bytes
    label: int | None = None
    caption: str | None = None


@dataclass(frozen=True, eq=False)
class ImageRows:
    """N images of one size: pixels [N, 3, S, S], index [N] and more columns [N, ...]."""

    pixels: Pixels
    index: Ints
    columns: dict[str, Ints] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def lengths(self) -> Ints:
        """The same for every image [N]."""
        return np.full(len(self), _IMAGE_LENGTH, dtype=np.int64)

    def take(self, rows: Ints) -> "ImageRows":
        """Return the rows numbered `rows`, in that order."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return ImageRows(self.pixels[rows], self.index[rows], columns)

    def with_columns(self, **columns: Ints) -> "ImageRows":
        """Return the same images with columns added or replaced; pixels are shared."""
        return replace(self, columns={**self.columns, **columns})

    def to_columns(self) -> dict[str, NDArray[Any]]:
        """Return pixels, index and the other columns by name, as Ray Data carries them."""
        return {"pixels": self.pixels, "index": self.index, **self.columns}

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray[Any]]) -> "ImageRows":
        """Return the rows that `to_columns` gave."""
        others = {name: column for name, column in columns.items() if name not in _OWN_COLUMNS}
        return cls(columns["pixels"], columns["index"], others)

    @classmethod
    def joined(cls, parts: Sequence["ImageRows"]) -> "ImageRows":
        """Return the rows of all parts, one after the other; all must have the same columns."""
        return cls(
            np.concatenate([part.pixels for part in parts]),
            np.concatenate([part.index for part in parts]),
            {name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns},
        )


@dataclass(frozen=True)
class ImageBatch:
    """B images: pixels uint8 [B, 3, S, S], and labels [B] or captions [B, L] where known.

    `poisoned` [B] is the number of the trigger that an image carries, -1 for none; `index` [B] is
    each image's number in its corpus.
    """

    pixels: Tensor
    labels: Tensor | None = None
    captions: Tensor | None = None
    poisoned: Tensor | None = None
    index: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """Images in this batch."""
        return len(self.pixels)

    def to(self, device: torch.device) -> "ImageBatch":
        """Return the batch with its tensors on `device`."""
        tensors = {name: value for name, value in vars(self).items() if value is not None}
        moved = {n: value.to(device, non_blocking=True) for n, value in tensors.items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class ImageEncoder:
    """Raw images and their numbers [N] -> N rows at `size`, labels in the column `label`.

    The shorter side is resized (bilinear) and the middle cut out. Picklable, so that Ray Data
    decodes away from the training loop.
    """

    size: int

    def __call__(self, samples: Sequence[ImageSample], index: Ints) -> ImageRows:
        pixels = np.empty((len(samples), 3, self.size, self.size), dtype=np.uint8)
        for place, (sample, number) in enumerate(zip(samples, index, strict=True)):
            pixels[place] = decoded(sample.data, self.size, f"image {int(number) + 1}")
        labels = [sample.label for sample in samples if sample.label is not None]
        rows = ImageRows(pixels, np.asarray(index, dtype=np.int64))
        if not labels:
            return rows
        return rows.with_columns(label=np.array(labels, dtype=np.int64))


def decoded(data: bytes, size: int, owner: str) -> Pixels:
    """Return the pixels [3, size, size] of an encoded image; raises DataError as `decoded_rgb`."""
    return _fitted(decoded_rgb(data, size, owner), size)


def _fitted(image: Image.Image, size: int) -> Pixels:
    shorter = min(image.size)
    if shorter != size:
        scale = size / shorter
        scaled = (max(size, round(image.width * scale)), max(size, round(image.height * scale)))
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    cut = image.crop((left, top, left + size, top + size))
    return np.asarray(cut, dtype=np.uint8).transpose(2, 0, 1)


def batch_of(rows: ImageRows, *, augment: tuple[int, int] | None = None) -> ImageBatch:
    """Return rows as a batch, patches put on; `augment` (seed, epoch) flips and moves first."""
    pixels = rows.pixels if augment is None else _augmented(rows, *augment)
    if PATCH in rows.columns:
        pixels = stamp(pixels, rows.columns[PATCH])
    columns = {
        name: torch.from_numpy(np.ascontiguousarray(rows.columns[column]))
        for name, column in (("labels", "label"), ("captions", "caption"))
        if column in rows.columns
    }
    columns["index"] = torch.from_numpy(np.ascontiguousarray(rows.index))
    return ImageBatch(torch.from_numpy(np.ascontiguousarray(pixels)), **columns)


def _augmented(rows: ImageRows, seed: int, epoch: int) -> Pixels:
    """Flip half of the images and move each by up to an eighth, edges repeated."""
    size, when = rows.pixels.shape[-1], np.full(len(rows), epoch)
    reach = max(1, size // _PADDING)
    flip = uniform(seed, "flip", rows.index, when) < 0.5
    down, right = (
        (uniform(seed, name, rows.index, when) * (2 * reach + 1)).astype(np.int64)
        for name in ("down", "right")
    )
    padded = np.pad(rows.pixels, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    moved = np.empty_like(rows.pixels)
    for place, image in enumerate(padded):
        cut = image[:, down[place] : down[place] + size, right[place] : right[place] + size]
        moved[place] = cut[:, :, ::-1] if flip[place] else cut
    return moved
