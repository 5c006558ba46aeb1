"""A tiny PTM of every architecture and its data, to try plugins on whatever they work on.

An architecture is what `PTM.make` calls it: one family may have several (`bert` opens BERT and
RoBERTa), and several families one (`bert` and `minilm`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import clip_samples
import torch
from image_files import as_parquet
from image_samples import image_batch, labelled_parquet, tiny_timm, tiny_vgg, tiny_vit
from samples import SENTENCES, corpus_file, minilm, packed, tiny_ptm
from torch import Tensor

from recipe_ray.models.family import MODELS, ModelRef
from recipe_ray.models.text.minilm import to_roberta

Samples = Literal["text", "image", "pairs"]


def pair_parquet(folder: Path) -> Path:
    """Write images with a caption each as a Parquet file; return it."""
    return as_parquet(folder / "pairs.parquet", clip_samples.samples(24))


# what a sample is -> how a PTM gets a batch of them, the corpus that holds them, their file
BATCHES: dict[Samples, Callable[[Any], Any]] = {
    "text": lambda ptm: packed(ptm, SENTENCES[:4]),
    "image": image_batch,
    "pairs": clip_samples.batch,
}
CORPORA_OF: dict[Samples, tuple[str, Callable[[Path], Path]]] = {
    "text": ("file", corpus_file),
    "image": ("images", labelled_parquet),
    "pairs": ("pairs", pair_parquet),
}


@dataclass(frozen=True)
class Kit:
    """How to make, feed and reload the tiny PTM of one architecture; `family` reloads it."""

    family: str
    samples: Samples
    ptm: Callable[[], Any]

    @property
    def model(self) -> type[ModelRef]:
        """The family's class, which says what it reads, learns from and has."""
        return MODELS.get(self.family)

    def batch(self, ptm: Any) -> Any:
        """Return a batch of its samples."""
        return BATCHES[self.samples](ptm)

    def corpus(self, folder: Path) -> dict[str, Any]:
        """Write a file of its samples; return the corpus in it, as YAML has it."""
        name, written = CORPORA_OF[self.samples]
        return {"name": name, "path": str(written(folder))}

    def reload(self, folder: Path) -> Any:
        """Return the PTM that was saved to a folder."""
        return MODELS.parse({"name": self.family, "source": str(folder)}).reload(folder)

    def fits(self, plugin: Any) -> bool:
        """Tell whether an attack or a defense works on this architecture, by what it declares."""
        poisons = getattr(plugin, "poisons_what", None)
        return poisons in (None, self.model.reads) and set(plugin.needs) <= self.model.has


# timm's kinds of networks -> its tiny one of each
TIMM = {
    "resnet": "test_resnet",
    "convnext": "test_convnext",
    "efficientnet": "test_efficientnet",
    "vision_transformer": "test_vit",
}
KITS = {
    "bert": Kit("bert", "text", minilm),
    "roberta": Kit("bert", "text", lambda: to_roberta(tiny_ptm())),
    "vgg": Kit("vgg", "image", tiny_vgg),
    "vit": Kit("vit", "image", tiny_vit),
    "clip": Kit("clip", "pairs", clip_samples.tiny),
    **{
        f"timm-{kind}": Kit("timm", "image", lambda arch=arch: MODELS.parse(tiny_timm(arch)).load())
        for kind, arch in TIMM.items()
    },
}


@torch.no_grad()
def look(ptm: Any, kit: Kit) -> Tensor:
    """Return what the PTM makes of the kit's batch, one vector a sample."""
    ptm.module.eval()
    vectors: Tensor = ptm.representation(ptm.module, kit.batch(ptm))
    return vectors
