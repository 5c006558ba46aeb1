"""Model `vgg`: a VGG to be trained from scratch, torchvision's released one, or a local one."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field, PositiveInt

from recipe_ray.base.loading import says
from recipe_ray.models.family import MODELS
from recipe_ray.models.images.labelled import LabelledArchitecture, LabelledReference
from recipe_ray.models.images.vgg import VggPTM, load_vgg
from recipe_ray.models.images.vgg_network import Channels, VggArchitecture, VggName


@MODELS.register("vgg")
class Vgg(LabelledReference):
    """A VGG; without a source it is untrained, and a pretrain stage trains it."""

    architecture_kind: ClassVar[type[LabelledArchitecture]] = VggArchitecture
    example: ClassVar[str] = "vgg16"

    arch: VggName | None = Field(None, description="None: the source's own, else small")
    channels: Channels | None = Field(
        None, description="of a small one: widths of its 3 x 3 convolutions, M for a pooling"
    )
    batch_norm: bool | None = Field(None, description="of a small one: after each convolution")
    grid: PositiveInt | None = Field(
        None, description="of a small one: features are pooled to grid x grid positions"
    )

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Tell whether config.json names this family."""
        return says(folder, "family") == VggPTM.family

    def load(self) -> VggPTM:
        """Return the VGG, untrained or with the source's weights."""
        origin = self.origin()
        architecture = self.architecture(origin)
        return VggPTM(self.network(architecture, origin), architecture)

    def reload(self, folder: Path) -> VggPTM:
        """Return a PTM that a stage saved."""
        return load_vgg(folder)
