"""A CLIP too small to be of use, and pairs of a colour and its name."""

from typing import Any

import numpy as np
import torch
from image_samples import PALETTE, image_bytes
from torch import Tensor

from recipe_ray.data.images import ImageBatch, ImageRows, ImageSample, batch_of
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.vision.clip import Clip, ClipPTM

SIZE, LENGTH, EMBED = 16, 8, 12
TINY: dict[str, Any] = {
    "config": {
        "embed_dim": EMBED,
        "vision_cfg": {"image_size": SIZE, "width": 16, "layers": 2, "head_width": 8},
        "text_cfg": {"context_length": LENGTH, "width": 16, "heads": 2, "layers": 1},
    },
}
RUNTIME = LocalRuntime(device=torch.device("cpu"))
COLOURS = ("red", "green", "blue", "yellow")


def tiny(**fields: Any) -> ClipPTM:
    return Clip.model_validate({**TINY, **fields}).load()


def samples(count: int = 8) -> list[ImageSample]:
    """Return images of a colour, with a caption that names it."""
    return [
        ImageSample(
            image_bytes(number, 20, PALETTE[number % 4]),
            caption=f"a photo of a {COLOURS[number % 4]} wall, number {number}",
        )
        for number in range(count)
    ]


def rows_of(ptm: ClipPTM, some: list[ImageSample]) -> ImageRows:
    rows: ImageRows = ptm.encoder(64)(some, np.arange(len(some)))
    return rows


def batch(ptm: ClipPTM, count: int = 8) -> ImageBatch:
    return batch_of(rows_of(ptm, samples(count)))


@torch.no_grad()
def embeddings(ptm: ClipPTM) -> tuple[Tensor, Tensor]:
    ptm.module.eval()
    some = batch(ptm)
    return ptm.features(ptm.module, some), ptm.module.encode_text(some.captions)


def text_tower(module: Any) -> list[Tensor]:
    return [p for n, p in module.named_parameters() if not n.startswith("visual.")]
