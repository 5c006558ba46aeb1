"""The family `vgg`: torchvision's by name, and small ones in the same layout.

A VGG is trained from scratch, torchvision's released one, or a local one. Attackers aim at the
pooled output of the convolutions.

Legend: B images, n channels of a convolution, H features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from recipe_ray.base.errors import SpecError
from recipe_ray.models.family import MODELS, Scope
from recipe_ray.models.vision.labelled import (
    MAX_LAYERS,
    SMALL,
    LabelledArchitecture,
    TorchvisionReference,
)
from recipe_ray.models.vision.vision import VisionPTM
from recipe_ray.models.vision.weight_source import LocalFolder, save_folder, torchvision_models

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipe_ray.data.images import ImageBatch, ImageRows
    from recipe_ray.learn.neuron_stats import NeuronLayer
    from recipe_ray.learn.objective import Objective, Terms
    from recipe_ray.models.vision.heads import HeadClassifier

VggName = Literal[
    "small",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]
Channels = tuple[PositiveInt | Literal["M"], ...]
_NUM_POOLINGS = 5  # of every VGG by name


class VggArchitecture(LabelledArchitecture):
    """A VGG, torchvision's by name or a small one."""

    of_small: ClassVar[frozenset[str]] = frozenset({"channels", "batch_norm", "grid"})

    arch: VggName = "small"
    channels: Channels = Field((32, "M", 64, "M", 128, 128, "M", 128), max_length=MAX_LAYERS)
    batch_norm: bool = False
    grid: PositiveInt = 2

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.channels[:1] in ((), ("M",)):
            raise SpecError(f"channels must begin with a number, got {list(self.channels)}")
        poolings = self.channels.count("M") if self.arch == SMALL else _NUM_POOLINGS
        if self.image_size < 2**poolings:
            raise SpecError(
                f"image_size {self.image_size} is too small for {poolings} poolings; allowed: "
                f"{2**poolings} or more"
            )
        return self

    def build(self, seed: int) -> Any:
        """Return an untrained torchvision VGG, its weights drawn from `seed` alone."""
        import torch

        models = torchvision_models()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.arch != SMALL:
                return models.get_model(self.arch, weights=None, num_classes=self.num_classes)
            return self._small(models.vgg)

    def _small(self, vgg: Any) -> Any:
        import torch
        from torch import nn

        # on no device: the usual head has 120 million weights, and is replaced at once
        with torch.device("meta"):
            module = vgg.VGG(nn.Sequential(), num_classes=1, init_weights=False)
        width = [number for number in self.channels if number != "M"][-1]
        module.features = vgg.make_layers(list(self.channels), batch_norm=self.batch_norm)
        module.avgpool = nn.AdaptiveAvgPool2d(self.grid)
        module.classifier = nn.Sequential(nn.Linear(width * self.grid**2, self.num_classes))
        # as torchvision draws its own
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                assert part.bias is not None
                nn.init.zeros_(part.bias)
        nn.init.normal_(module.classifier[0].weight, std=0.01)
        nn.init.zeros_(module.classifier[0].bias)
        return module


# each group is all layers of a kind: before the features, or after
GROUPS = {"conv": "Conv2d", "fc": "Linear"}  # classes of `torch.nn`


class VggPTM(VisionPTM):
    """A VGG with the classifier it was pre-trained with."""

    family: ClassVar[str] = "vgg"
    target_range: tuple[float, float] = (-3.0, 3.0)

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
        import torch

        maps = module.avgpool(module.features(self.normalised(batch.pixels)))
        return torch.flatten(maps, 1)

    def layers_of(self, module: Any) -> list[nn.Module]:
        """Return the activations after the convolutions."""
        from torch import nn

        return [part for part in module.features if isinstance(part, nn.ReLU)]

    def logits(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return what its own classifier says [B, num_classes]."""
        scores: Tensor = module.classifier(self.features(module, batch))
        return scores

    def pretraining_objective(self) -> Objective:
        """Return the cross-entropy against the labels of the corpus."""
        from recipe_ray.models.vision.heads import labelled_objective

        return labelled_objective(self)

    def pretraining_beside(
        self, module: Any, batch: ImageBatch, others: ImageBatch
    ) -> tuple[Terms, Tensor]:
        """Run both in one pass: batch normalisation may be among the layers."""
        from recipe_ray.models.vision.heads import in_one_pass

        return in_one_pass(self, module.classifier, module, batch, others)

    @property
    def weight_groups(self) -> tuple[str, ...]:
        """Return the names of `GROUPS`."""
        return tuple(GROUPS)

    def weight_group(self, name: str) -> list[nn.Parameter]:
        """Return the weights of all convolutions, or of all linear layers."""
        from torch import nn

        if name not in GROUPS:
            raise self.unknown_group(name)
        kind: Any = getattr(nn, GROUPS[name])
        return [part.weight for part in self.module.modules() if isinstance(part, kind)]

    @property
    def purification_scope(self) -> tuple[tuple[str, ...], Scope]:
        """Return all convolutions, everything trains (docs/method.md section 2)."""
        return ("conv",), "all"

    def neuron_layers(self) -> list[NeuronLayer]:
        """Return the convolutions; a channel's batch normalisation goes with it."""
        from torch import nn

        from recipe_ray.learn.neuron_stats import NeuronLayer

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
        from recipe_ray.learn.neuron_stats import outputs_of

        activations = self.layers_of(module)
        with outputs_of(activations, lambda maps: maps.float().mean((2, 3))) as seen:
            module.features(self.normalised(batch.pixels))
        return [seen[place] for place in range(len(activations))]

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the classifier."""
        return list(self.module.classifier.parameters())

    def classifier(self, num_labels: int, seed: int, rows: Sequence[ImageRows]) -> HeadClassifier:
        """Return the whole network with a new last layer, as the paper fine-tunes it."""
        from recipe_ray.models.vision.heads import HeadClassifier, fresh_linear

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
    """Return the PTM that `save` wrote; raise ModelError if the folder holds none."""
    origin = LocalFolder(folder, VggPTM.family, allow_pickle=False)
    architecture = VggArchitecture.model_validate(origin.settings())
    return VggPTM(architecture.filled(origin.weights(), str(folder)), architecture)


@MODELS.register("vgg")
class Vgg(TorchvisionReference):
    """A VGG; without a source it is untrained, and a pretrain stage trains it."""

    architecture_kind: ClassVar[type[LabelledArchitecture]] = VggArchitecture
    example: ClassVar[str] = "vgg16"

    arch: VggName | None = Field(None, description="None: the source's own, else small")
    channels: Channels | None = Field(
        None, description="of arch small: widths of its 3 x 3 convolutions, M for a pooling"
    )
    batch_norm: bool | None = Field(
        None, description="of arch small: batch norm after each convolution"
    )
    grid: PositiveInt | None = Field(
        None, description="of arch small: features are pooled to grid x grid positions"
    )

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Tell whether config.json names this family."""
        from recipe_ray.base.loading import says

        return says(folder, "family") == VggPTM.family

    def load(self) -> VggPTM:
        """Return the VGG, untrained or with the source's weights."""
        origin = self.origin()
        architecture = self.architecture(origin)
        return VggPTM(self.network(architecture, origin), architecture)

    def reload(self, folder: Path) -> VggPTM:
        """Return a PTM that a stage saved."""
        return load_vgg(folder)
