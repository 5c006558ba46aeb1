"""Images: from an encoded file of any kind to RGB pixels at a model's input size, in batches.

Images are read as people see them: upright, 16 bits scaled (Pillow would clip them to white),
transparency dropped as torchvision and timm do (`convert("RGB")`). Pixels stay uint8 until a model
normalises them. An overlay is a column of its image's row until a batch is made, so that images
which differ only in their overlay are held once.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from recipe_ray.base.errors import DataError
from recipe_ray.base.limits import PIXELS
from recipe_ray.data.rows import Ints, uniform

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# formats of photographs. Pillow knows many more, and for one (EPS) it runs the file as a program
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
_ORIENTATION = 0x0112  # of Exif
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PLAIN = {"P": "RGBA", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}  # on their way to RGB
_TILE_SIDES = (322, 323)  # of TIFF
_BITS = 258  # of TIFF: per sample
_MAX_16 = 65_535


def decoded_rgb(data: bytes, size: int, owner: str) -> Image.Image:
    """Return an encoded image upright in RGB, decoded at `size` or more if its format allows that.

    For an animation it is the first frame. Raises DataError for bytes that are not an image of
    `FORMATS`, one that is cut off, one of over `PIXELS` pixels as it is or with its shorter side
    scaled to `size`, and one whose numbers have an unknown range.
    """
    try:
        # Pillow warns of a damaged Exif and of what may be a bomb; the limit on pixels is ours
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(BytesIO(data), formats=FORMATS) as image,
        ):
            _check_size(image, size, owner)
            image.draft("RGB", (size, size))  # a JPEG is decoded at no more than twice this size
            image.load()  # a PNG may have its Exif after the pixels; a TIFF is turned by Pillow
            return _upright(image, _in_rgb(image, owner))
    except UnidentifiedImageError as error:
        raise DataError(f"{owner} cannot be decoded: allowed: {', '.join(FORMATS)}") from error
    except DataError:
        raise
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{owner} cannot be decoded: {error}") from error


def _check_size(image: Image.Image, size: int, owner: str) -> None:
    width, height = image.size
    scaled = size * size * max(width, height) // max(1, min(width, height))
    tile = 1
    for side in _TILE_SIDES:
        tile *= _tiff_number(image, side) or 1
    limit = PIXELS.value
    if max(width * height, scaled, tile) > limit:
        raise PIXELS.exceeded(
            f"{owner} has {width} x {height} pixels",
            limit,
            f", also of a tile and after the shorter side is scaled to {size}",
        )


def _tiff_number(image: Image.Image, tag: int) -> int | None:
    found = getattr(image, "tag_v2", {}).get(tag)
    found = found[0] if isinstance(found, tuple) and found else found
    return found if isinstance(found, int) else None


def _in_rgb(image: Image.Image, owner: str) -> Image.Image:
    if image.mode.startswith("I"):
        return _scaled(image, owner).convert("RGB")
    if image.mode == "F":
        return _from_floats(image, owner).convert("RGB")
    plain = _PLAIN.get(image.mode)
    return (image.convert(plain) if plain else image).convert("RGB")


def _scaled(image: Image.Image, owner: str) -> Image.Image:
    """Return an image of whole numbers from 0 to 65,535 in 8 bits; a TIFF may use fewer bits."""
    values = np.asarray(image, dtype=np.int64)
    bits = _tiff_number(image, _BITS) or 16
    largest = 2**bits - 1 if 8 < bits < 16 else _MAX_16
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > largest:
        raise DataError(
            f"{owner} holds numbers from {low} to {high}; allowed: 0 to {largest} (16 bits); "
            "save it as an 8 or 16 bit image"
        )
    return Image.fromarray(((values * 255 + largest // 2) // largest).astype(np.uint8))


def _from_floats(image: Image.Image, owner: str) -> Image.Image:
    """Return an image of numbers from 0 to 1, or else from 0 to 255, in 8 bits."""
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # false for NaN, too
        raise DataError(
            f"{owner} holds numbers from {low:g} to {high:g}; allowed: 0 to 1, or 0 to 255; save "
            "it as an 8 or 16 bit image"
        )
    return Image.fromarray(np.round(values * (255 if high <= 1 else 1)).astype(np.uint8))


def _upright(image: Image.Image, rgb: Image.Image) -> Image.Image:
    turn = _UPRIGHT.get(_orientation(image))
    return rgb if turn is None else rgb.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return how a camera held the image, 1 (upright) if its note of that cannot be read."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, EOFError, struct.error):
        # editors often cut off what a camera noted next to the pixels; the pixels are whole
        return 1
    return found if isinstance(found, int) else 1


Pixels = NDArray[np.uint8]
# column [N, 4, w, w]: red, green, blue and whether they hide what is there (0: no), for the lower
# right corner
OVERLAY = "overlay"
_OWN_COLUMNS = ("pixels", "index")
_IMAGE_LENGTH = 32  # an image counts as so many tokens when work is dealt out
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
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def lengths(self) -> Ints:
        """The same for every image [N]."""
        return np.full(len(self), _IMAGE_LENGTH, dtype=np.int64)

    def take(self, rows: Ints) -> ImageRows:
        """Return the rows numbered `rows`, in that order."""
        columns = {name: values[rows] for name, values in self.columns.items()}
        return ImageRows(self.pixels[rows], self.index[rows], columns)

    def with_columns(self, **columns: NDArray[Any]) -> ImageRows:
        """Return the same images with columns added or replaced; pixels are shared."""
        return replace(self, columns={**self.columns, **columns})

    def to_columns(self) -> dict[str, NDArray[Any]]:
        """Return pixels, index and the other columns by name, as Ray Data carries them."""
        return {"pixels": self.pixels, "index": self.index, **self.columns}

    @classmethod
    def from_columns(cls, columns: Mapping[str, NDArray[Any]]) -> ImageRows:
        """Return the rows that `to_columns` gave."""
        others = {name: column for name, column in columns.items() if name not in _OWN_COLUMNS}
        return cls(columns["pixels"], columns["index"], others)

    @classmethod
    def joined(cls, parts: Sequence[ImageRows]) -> ImageRows:
        """Return the rows of all parts, one after the other; all must have the same columns."""
        return cls(
            np.concatenate([part.pixels for part in parts]),
            np.concatenate([part.index for part in parts]),
            {name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns},
        )


@dataclass(frozen=True)
class ImageBatch:
    """B images: pixels uint8 [B, 3, S, S], and labels [B] or captions [B, L] if known.

    `index` [B] is each image's number in its corpus.
    """

    pixels: Tensor
    labels: Tensor | None = None
    captions: Tensor | None = None
    index: Tensor | None = None

    @property
    def num_samples(self) -> int:
        """Images in this batch."""
        return len(self.pixels)

    def to(self, device: torch.device) -> ImageBatch:
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
    """Return rows as a batch, overlays laid on; `augment` (seed, epoch) flips and moves first."""
    import torch

    pixels = rows.pixels if augment is None else _augmented(rows, *augment)
    if OVERLAY in rows.columns:
        pixels = _overlaid(pixels, rows.columns[OVERLAY])
    columns = {
        name: torch.from_numpy(np.ascontiguousarray(rows.columns[column]))
        for name, column in (("labels", "label"), ("captions", "caption"))
        if column in rows.columns
    }
    columns["index"] = torch.from_numpy(np.ascontiguousarray(rows.index))
    return ImageBatch(torch.from_numpy(np.ascontiguousarray(pixels)), **columns)


def _overlaid(pixels: Pixels, overlays: Pixels) -> Pixels:
    """Return a copy of pixels [N, 3, S, S] with overlays [N, 4, w, w] in the lower right corner."""
    laid, width = pixels.copy(), overlays.shape[-1]
    np.copyto(laid[:, :, -width:, -width:], overlays[:, :3], where=overlays[:, 3:] > 0)
    return laid


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
