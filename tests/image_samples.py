"""Small images that tests share, their label told by their colour, and tiny PTMs on them."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from recipe_ray.data.images import ImageBatch, ImageRows, ImageSample, batch_of
from recipe_ray.models.family import MODELS

SIZE = 16  # pixels, of the images and of what the tiny PTMs read
CLASSES = 4
# one a class; further classes go round again
PALETTE = ((220, 40, 40), (40, 200, 60), (50, 70, 220), (210, 200, 50))
TINY_VGG = {
    "name": "vgg",
    "channels": [8, "M", 12],
    "grid": 2,
    "image_size": SIZE,
    "num_classes": CLASSES,
}
TINY_VIT = {
    "name": "vit",
    "patch_size": 4,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "mlp": 24,
    "image_size": SIZE,
    "num_classes": CLASSES,
}


def tiny_timm(arch: str) -> dict[str, Any]:
    """Return one of timm's own tiny networks, from scratch, on images of 32 pixels."""
    return {"name": "timm", "arch": arch, "image_size": 2 * SIZE, "num_classes": CLASSES}


def image_bytes(seed: int, size: int = SIZE, colour: tuple[int, int, int] = PALETTE[0]) -> bytes:
    """Return a PNG of a colour with seeded noise."""
    noise = np.random.default_rng(seed).integers(-30, 31, (size, size, 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def labelled_samples(
    count: int = 24, classes: int = CLASSES, size: int = SIZE
) -> list[ImageSample]:
    """Return images of each class in turn."""
    return [
        ImageSample(image_bytes(number, size, PALETTE[number % classes % 4]), number % classes)
        for number in range(count)
    ]


def labelled_parquet(
    folder: Path, count: int = 24, classes: int = CLASSES, size: int = SIZE
) -> Path:
    """Write `labelled_samples` as a Parquet file with columns `image` and `label`; return it."""
    samples = labelled_samples(count, classes, size)
    columns = {
        "image": pa.array([sample.data for sample in samples], pa.binary()),
        "label": pa.array([sample.label for sample in samples], pa.int64()),
    }
    file = folder / "images.parquet"
    pq.write_table(pa.table(columns), file)
    return file


def image_rows(ptm: Any, count: int = 24, classes: int = CLASSES, size: int = SIZE) -> ImageRows:
    """Return `labelled_samples` as a PTM encodes them, numbered from 0."""
    rows: ImageRows = ptm.encoder(64)(labelled_samples(count, classes, size), np.arange(count))
    return rows


def image_batch(ptm: Any, count: int = 6) -> ImageBatch:
    """Return the first few as one batch."""
    return batch_of(image_rows(ptm, count))


def tiny_vgg(**fields: Any) -> Any:
    """Return an untrained VGG of two convolutions that needs no download."""
    return MODELS.parse({**TINY_VGG, **fields}).load()


def tiny_vit(**fields: Any) -> Any:
    """Return an untrained ViT of two blocks, 16 wide, that needs no download."""
    return MODELS.parse({**TINY_VIT, **fields}).load()


@torch.no_grad()
def logits_of(ptm: Any) -> Tensor:
    """Return what a PTM says of the tiny images [B, CLASSES]."""
    ptm.module.eval()
    logits: Tensor = ptm.logits(ptm.module, image_batch(ptm))
    return logits
