"""The VGGs: torchvision's by name, and small ones in the same layout from a list of channels."""

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from recipe_ray.base.errors import SpecError
from recipe_ray.models.images.labelled import MAX_LAYERS, SMALL, LabelledArchitecture
from recipe_ray.models.images.torchvision_weights import torchvision_models

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
        models = torchvision_models()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.arch != SMALL:
                return models.get_model(self.arch, weights=None, num_classes=self.num_classes)
            return self._small(models.vgg)

    def _small(self, vgg: Any) -> Any:
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
