"""The colours of an image as people see them: bits, palettes, transparency, and how it was held."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samples import raised_by

from recipe_ray.data.images import decoded

SIZE = 8
Pixels = np.ndarray[Any, Any]


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image in a file format."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def ramp(dtype: str, top: float) -> Pixels:
    """Return rows [8, 8] from 0 to `top`, left to right."""
    return np.tile(np.linspace(0, top, SIZE), (SIZE, 1)).astype(dtype)


def near(data: bytes, expected: Pixels, by: int = 1) -> bool:
    """Tell whether an image decodes to these grey or RGB values [8, 8] or [8, 8, 3]."""
    found = decoded(data, SIZE, "image 1").transpose(1, 2, 0).astype(int)
    wanted = expected.astype(int)
    wanted = wanted[..., None] if wanted.ndim == 2 else wanted
    return bool(np.abs(found - wanted).max() <= by)


GREY = ramp("uint8", 255)
KINDS: dict[str, Callable[[], bytes]] = {
    "16-bit PNG": lambda: encoded(Image.fromarray(ramp("uint16", 65535)), "PNG"),
    "16-bit TIFF": lambda: encoded(Image.fromarray(ramp("uint16", 65535)), "TIFF"),
    "16-bit TIFF, packed": lambda: encoded(
        Image.fromarray(ramp("uint16", 65535)), "TIFF", compression="tiff_lzw"
    ),
    "16-bit TIFF, big-endian": lambda: encoded(
        Image.frombytes("I;16B", (SIZE, SIZE), ramp(">u2", 65535).tobytes()), "TIFF"
    ),
    "32-bit TIFF of 16 bits": lambda: encoded(Image.fromarray(ramp("int32", 65535)), "TIFF"),
    "16-bit PGM": lambda: b"P5 8 8 65535\n" + ramp(">u2", 65535).tobytes(),
    "10-bit PGM": lambda: b"P5 8 8 1023\n" + ramp(">u2", 1023).tobytes(),
    "floats to 1": lambda: encoded(Image.fromarray(ramp("float32", 1)), "TIFF"),
    "floats to 255": lambda: encoded(Image.fromarray(ramp("float32", 255)), "TIFF"),
    "8-bit grey": lambda: encoded(Image.fromarray(GREY), "PNG"),
    "grey with alpha": lambda: encoded(
        Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (SIZE, SIZE), 128)]), "PNG"
    ),
    "colour with alpha": lambda: encoded(
        Image.merge("RGBA", [*[Image.fromarray(GREY)] * 3, Image.new("L", (SIZE, SIZE))]), "PNG"
    ),
    "GIF": lambda: encoded(Image.fromarray(GREY), "GIF"),
    "CMYK TIFF": lambda: encoded(Image.fromarray(GREY).convert("RGB").convert("CMYK"), "TIFF"),
    "CMYK JPEG": lambda: encoded(
        Image.fromarray(GREY).convert("RGB").convert("CMYK"), "JPEG", quality=100
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_grey_ramp_is_the_same_in_every_kind_of_file(kind: str) -> None:
    assert near(KINDS[kind](), GREY, by=3 if "JPEG" in kind else 1)


def png_16(channels: int) -> bytes:
    """Return a PNG of 16 bits per channel, which Pillow cannot write."""

    kind = {2: 4, 3: 2, 4: 6}[channels]
    values = np.repeat(ramp(">u2", 65535)[..., None], channels, axis=2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_several_channels_are_scaled(channels: int) -> None:
    assert near(png_16(channels), GREY)


def test_one_bit_is_black_and_white() -> None:
    checks = np.indices((SIZE, SIZE)).sum(0) % 2 == 0
    assert near(encoded(Image.fromarray(checks), "PNG"), checks * 255, by=0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])])
def test_a_palette_gives_its_colours_transparent_or_not(transparency: Any) -> None:
    image = Image.new("P", (SIZE, SIZE), 0)
    image.putpalette([200, 30, 40, 10, 220, 60])
    image.paste(1, (0, 0, 4, SIZE))
    options = {} if transparency is None else {"transparency": transparency}
    expected = np.zeros((SIZE, SIZE, 3), np.uint8)
    expected[:, :4], expected[:, 4:] = (10, 220, 60), (200, 30, 40)
    assert near(encoded(image, "PNG", **options), expected, by=0)


@pytest.mark.parametrize(("low", "high"), [(-5, 100), (0, 70_000)])
def test_whole_numbers_beyond_16_bits_are_refused(low: int, high: int) -> None:
    image = Image.fromarray(np.linspace(low, high, SIZE * SIZE, dtype=np.int32).reshape(SIZE, SIZE))
    said = raised_by(lambda: decoded(encoded(image, "TIFF"), SIZE, "image 1"))
    assert f"image 1 holds numbers from {low} to {high}; allowed: 0 to 65535" in said


@pytest.mark.parametrize("value", [-1.0, 256.0, float("nan"), float("inf")])
def test_floats_without_a_known_range_are_refused(value: float) -> None:
    image = Image.fromarray(np.full((SIZE, SIZE), value, np.float32))
    said = raised_by(lambda: decoded(encoded(image, "TIFF"), SIZE, "image 1"))
    assert "allowed: 0 to 1, or 0 to 255" in said


def quarters() -> Image.Image:
    """Return an image whose four corners differ."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[:4, :4], pixels[:4, 4:] = (250, 10, 10), (10, 250, 10)
    pixels[4:, :4], pixels[4:, 4:] = (10, 10, 250), (250, 250, 250)
    return Image.fromarray(pixels)


HELD = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", HELD)
def test_an_image_is_seen_upright_however_the_camera_was_held(kind: str, orientation: int) -> None:
    turned = HELD[orientation]
    stored = quarters() if turned is None else quarters().transpose(turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    options |= {"lossless": True} if kind == "WEBP" else {}
    data = encoded(stored, kind, exif=exif, **options)
    assert near(data, np.asarray(quarters()), by=12)


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0nonsense",
        b"Exif\0\0MM\0*\0\0\0\x08",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12" * 40,
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",  # text
        b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0",  # 99
    ],
)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_corrupt_note_of_the_camera_does_not_stop_the_image(kind: str, exif: bytes) -> None:
    data = encoded(quarters(), kind, **({"exif": exif} if exif else {}))
    assert decoded(data, SIZE, "image 1").shape == (3, SIZE, SIZE)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(data, SIZE, "image 1")[:, 0, 0].tolist() == [255, 0, 0]


def test_the_limit_on_pixels_is_set_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(ramp("uint16", 65535)), "TIFF")
    monkeypatch.setenv("RECIPE_RAY_MAX_PIXELS", "63")
    said = raised_by(lambda: decoded(data, SIZE, "image 1"))
    assert "image 1 has 8 x 8 pixels; allowed: at most 63" in said
    assert "RECIPE_RAY_MAX_PIXELS" in said
