"""The family `vgg`: torchvision's VGG, whose names a saved folder keeps.

Attackers aim at the pooled output of the convolutions; `models/vgg.py` says which VGG is loaded.
Legend: B images, n channels of a convolution, H features.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from recipe_ray.data.images import ImageBatch, ImageRows
from recipe_ray.learn.objective import Objective, Terms, classification
from recipe_ray.models.family import Scope
from recipe_ray.models.images.heads import HeadClassifier, fresh_linear
from recipe_ray.models.images.origins import LocalFolder, save_folder
from recipe_ray.models.images.vgg_network import VggArchitecture
from recipe_ray.models.images.vision import VisionPTM, check_labels, labelled_objective
from recipe_ray.models.neurons import NeuronLayer, outputs_of

# each group is all layers of a kind: those before the features, and those after
GROUPS = {"conv": nn.Conv2d, "fc": nn.Linear}


class VggPTM(VisionPTM):
    """A VGG with the classifier it was pre-trained with."""

    family: ClassVar[str] = "vgg"
    target_range: ClassVar[tuple[float, float]] = (-3.0, 3.0)

    def __init__(self, module: nn.Module, architecture: VggArchitecture) -> None:
        statistics = (architecture.mean, architecture.std)
        super().__init__(module, architecture.image_size, statistics)
        self.architecture = architecture
        self.num_classes = architecture.num_classes

    @property
    def feature_size(self) -> int:
        """Return H, channels x positions after pooling (512 x 7 x 7 for VGG-16)."""
        width: int = self._head[0].in_features
        return width

    def features(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return the pooled output of the last convolutions, flattened [B, H]."""
        maps = module.avgpool(module.features(self.normalised(batch.pixels)))
        return torch.flatten(maps, 1)

    def logits(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return what its own classifier says [B, num_classes]."""
        scores: Tensor = module.classifier(self.features(module, batch))
        return scores

    def pretraining_objective(self) -> Objective:
        """Return the cross-entropy against the labels of the corpus."""
        return labelled_objective(self)

    def pretraining_beside(
        self, module: Any, batch: ImageBatch, others: ImageBatch
    ) -> tuple[Terms, Tensor]:
        """Run both in one pass: batch normalisation may be among the layers."""
        check_labels(batch.labels, self.num_classes)
        both = self.features(module, ImageBatch(torch.cat([batch.pixels, others.pixels])))
        own, beside = both[: batch.num_samples], both[batch.num_samples :]
        return classification(lambda _: module.classifier(own), batch), beside

    @property
    def weight_groups(self) -> tuple[str, ...]:
        """Return the names of `GROUPS`."""
        return tuple(GROUPS)

    def weight_group(self, name: str) -> list[nn.Parameter]:
        """Return the weights of all convolutions, or of all linear layers."""
        if name not in GROUPS:
            raise self.unknown_group(name)
        kind: Any = GROUPS[name]
        return [part.weight for part in self.module.modules() if isinstance(part, kind)]

    @property
    def purification_scope(self) -> tuple[tuple[str, ...], Scope]:
        """Return all convolutions, everything trains (docs/method.md section 2)."""
        return ("conv",), "all"

    def neuron_layers(self) -> list[NeuronLayer]:
        """Return the convolutions; a channel's batch normalisation goes with it."""
        layers: list[NeuronLayer] = []
        for part in self.module.features:
            pair: Any = (getattr(part, "weight", None), getattr(part, "bias", None))
            if isinstance(part, nn.Conv2d):
                layers.append(NeuronLayer(*pair))
            elif isinstance(part, nn.BatchNorm2d):
                layers[-1] = replace(layers[-1], further=pair)
        return layers

    def neuron_activations(self, module: Any, batch: ImageBatch) -> list[Tensor]:
        """Return each convolution's channels after ReLU, means over positions [B, n]."""
        activations = [part for part in module.features if isinstance(part, nn.ReLU)]
        with outputs_of(activations, lambda maps: maps.float().mean((2, 3))) as seen:
            module.features(self.normalised(batch.pixels))
        return [seen[place] for place in range(len(activations))]

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the classifier."""
        return list(self.module.classifier.parameters())

    def classifier(self, num_labels: int, seed: int, rows: Sequence[ImageRows]) -> HeadClassifier:
        """Return the whole network with a new last layer, as the paper fine-tunes it."""
        head = self._head
        head[-1] = fresh_linear(head[-1].in_features, num_labels, seed)
        return HeadClassifier(self)

    def save(self, folder: Path) -> None:
        """Write model.safetensors under torchvision's names, and config.json."""
        save_folder(self.module, folder, self.family, self.architecture.settings())

    @property
    def _head(self) -> Any:
        return self.module.classifier


def load_vgg(folder: Path) -> VggPTM:
    """Return the PTM that `save` wrote; raise ModelError where the folder holds none."""
    origin = LocalFolder(folder, VggPTM.family, allow_pickle=False)
    architecture = VggArchitecture.model_validate(origin.settings())
    return VggPTM(architecture.filled(origin.weights(), str(folder)), architecture)
