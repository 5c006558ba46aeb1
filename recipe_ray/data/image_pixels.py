"""From an encoded image of any kind to its colours as people see them: RGB, uint8, upright.

Transparency is dropped, as torchvision and timm do (`convert("RGB")`). Values of 16 bits are
scaled, where Pillow would clip them to white.
"""

import struct
import warnings
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from recipe_ray.base.errors import DataError
from recipe_ray.base.limits import PIXELS

# what photographs come in. Pillow knows many more, and for one (EPS) it runs the file as a program
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

    Of an animation it is the first frame. Raises DataError for bytes that are no image of
    `FORMATS`, one that is cut off, one of over `PIXELS` pixels as it is or with its shorter side
    scaled to `size`, and one whose numbers have no range that is known.
    """
    try:
        # Pillow warns of a damaged Exif and of what may be a bomb; the limit on pixels is ours
        with (
            warnings.catch_warnings(action="ignore"),
            Image.open(BytesIO(data), formats=FORMATS) as image,
        ):
            _check_size(image, size, owner)
            image.draft("RGB", (size, size))  # a JPEG is decoded at no more than twice this size
            image.load()  # a PNG may have its Exif behind the pixels; a TIFF is turned by Pillow
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
        # what a camera noted beside the pixels is often cut off by editors; the pixels are whole
        return 1
    return found if isinstance(found, int) else 1
