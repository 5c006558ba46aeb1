"""A PTM on images of two convolutions, its spec, and small labelled images.

It stands in for a family where the family is not the question.
"""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recipe_ray.data.image_corpus import ImageCorpus
from recipe_ray.data.images import ImageBatch, ImageRows
from recipe_ray.learn.neuron_stats import NeuronLayer, outputs_of
from recipe_ray.learn.objective import Objective, Terms, classification
from recipe_ray.models.family import ModelRef, Scope
from recipe_ray.models.vision.heads import FeatureClassifier, labelled_objective
from recipe_ray.models.vision.vision import VisionPTM

SIZE, CLASSES, CHANNELS, FEATURES = 16, 3, 8, 32


class StubNet(nn.Module):
    """Two convolutions, batch normalisation between them where asked, and linear layers."""

    def __init__(self, *, normalised: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(CHANNELS) if normalised else nn.Identity()
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1)
        self.relu_first, self.relu_second = nn.ReLU(), nn.ReLU()
        self.mix = nn.Linear(CHANNELS * 16, FEATURES)
        self.head = nn.Linear(FEATURES, CLASSES)


class StubVision(VisionPTM):
    """A labelled family; its features mix all places, so that a corner can decide them."""

    family: ClassVar[str] = "stub"
    target_range: ClassVar[tuple[float, float]] = (-3.0, 3.0)
    num_classes: ClassVar[int] = CLASSES

    def __init__(self, *, normalised: bool = False) -> None:
        super().__init__(StubNet(normalised=normalised), SIZE, ((0.5,) * 3, (0.5,) * 3))

    @property
    def feature_size(self) -> int:
        return FEATURES

    def features(self, module: Any, batch: ImageBatch) -> Tensor:
        hidden = module.relu_first(module.norm(module.first(self.normalised(batch.pixels))))
        out: Tensor = module.mix(module.relu_second(module.second(hidden)).flatten(1))
        return out

    def layers_of(self, module: Any) -> list[nn.Module]:
        return [module.relu_first, module.relu_second]

    def pretraining_beside(
        self, module: Any, batch: ImageBatch, others: ImageBatch
    ) -> tuple[Terms, Tensor]:
        both = self.features(module, ImageBatch(torch.cat([batch.pixels, others.pixels])))
        clean, beside = both[: batch.num_samples], both[batch.num_samples :]
        return classification(lambda _: module.head(clean), batch), beside

    def logits(self, module: Any, batch: ImageBatch) -> Tensor:
        out: Tensor = module.head(self.features(module, batch))
        return out

    def pretraining_objective(self) -> Objective:
        return labelled_objective(self)

    @property
    def weight_groups(self) -> tuple[str, ...]:
        return ("conv",)

    @property
    def purification_scope(self) -> tuple[tuple[str, ...], Scope]:
        return ("conv",), "all"

    def weight_group(self, name: str) -> list[nn.Parameter]:
        if name != "conv":
            raise self.unknown_group(name)
        return [self.module.first.weight, self.module.second.weight]

    def neuron_layers(self) -> list[NeuronLayer]:
        layers = (self.module.first, self.module.second)
        return [NeuronLayer(layer.weight, layer.bias) for layer in layers]

    def neuron_activations(self, module: Any, batch: ImageBatch) -> list[Tensor]:
        layers = [module.relu_first, module.relu_second]
        with outputs_of(layers, lambda out: out.mean((2, 3))) as seen:
            self.features(module, batch)
        return [seen[0], seen[1]]

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.module.head.parameters())

    def classifier(self, num_labels: int, seed: int, rows: Sequence[ImageRows]) -> Any:
        return FeatureClassifier(self, num_labels, seed)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self.module.state_dict().items()}
        save_file(state, folder / "model.safetensors")


class StubRef(ModelRef):
    """How a stage names the stub; it is registered nowhere, so no list of models has it."""

    name: ClassVar[str] = "stub"
    learns_from: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    reads: ClassVar[str] = "image"
    has = ModelRef.has | {"Attackable"}

    normalised: bool = False

    def load(self) -> StubVision:
        return StubVision(normalised=self.normalised)

    def reload(self, folder: Path) -> StubVision:
        ptm = self.load()
        ptm.module.load_state_dict(load_file(folder / "model.safetensors"))
        return ptm

    def content(self) -> dict[str, Any]:
        return {"normalised": self.normalised}


def encoded_images(count: int, seed: int = 0) -> tuple[list[bytes], list[int]]:
    """Return PNG images and labels that can be learned: each class has its own brightness."""
    generator = np.random.default_rng(seed)
    images, labels = [], []
    for number in range(count):
        label = number % CLASSES
        pixels = generator.integers(0, 60, (20, 24, 3)) + 70 * label
        buffer = BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
        images.append(buffer.getvalue())
        labels.append(label)
    return images, labels


def image_file(folder: Path, count: int = 48, name: str = "images.parquet", seed: int = 0) -> Path:
    """Write images with labels into a Parquet file; return it."""
    images, labels = encoded_images(count, seed)
    file = folder / name
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), "label": labels}), file)
    return file


class StubImages(ImageCorpus):
    """Images of a file; registered nowhere."""

    name: ClassVar[str] = "stub-images"
