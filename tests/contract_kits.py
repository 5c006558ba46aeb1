"""A tiny PTM and its data for each kind of sample, to try plugins on whatever they work on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from image_samples import image_batch, labelled_parquet, tiny_vgg
from samples import SENTENCES, corpus_file, minilm, packed
from torch import Tensor

from recipe_ray.models.text.checkpoint import load_bert
from recipe_ray.models.vision.vgg import load_vgg


@dataclass(frozen=True)
class Kit:
    """How to make, reload and feed the tiny PTM of one kind."""

    ptm: Callable[[], Any]
    reload: Callable[[Path], Any]
    batch: Callable[[Any], Any]
    corpus: Callable[[Path], dict[str, Any]]


KITS = {
    "text": Kit(
        minilm,
        load_bert,
        lambda ptm: packed(ptm, SENTENCES[:4]),
        lambda folder: {"name": "file", "path": str(corpus_file(folder))},
    ),
    "image": Kit(
        tiny_vgg,
        load_vgg,
        image_batch,
        lambda folder: {"name": "images", "path": str(labelled_parquet(folder))},
    ),
}


@torch.no_grad()
def look(ptm: Any, kit: Kit) -> Tensor:
    """Return what the PTM makes of the kit's batch, one vector a sample."""
    ptm.module.eval()
    vectors: Tensor = ptm.representation(ptm.module, kit.batch(ptm))
    return vectors
