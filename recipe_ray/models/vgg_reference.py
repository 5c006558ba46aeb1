"""Model `vgg`: a VGG to be trained from scratch, torchvision's released one, or a local one."""

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from recipe_ray.base.errors import ModelError
from recipe_ray.base.loading import says
from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.images import ImageEncoder
from recipe_ray.models.family import MODELS, ModelRef
from recipe_ray.models.origins import Origin, architecture_of, load_strictly, local_origin
from recipe_ray.models.torchvision_weights import TORCHVISION, ReleasedWeights
from recipe_ray.models.vgg import VggPTM, load_vgg
from recipe_ray.models.vgg_network import SMALL, Channels, VggArchitecture, VggName
from recipe_ray.models.vision import Means, Spreads

INPUT = 224  # pixels, of the VGGs that have a name


@MODELS.register("vgg")
class Vgg(ModelRef):
    """A VGG; without a source it is untrained, and a pretrain stage trains it."""

    learns_from: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    reads: ClassVar[str] = "image"
    library: ClassVar[str] = "torchvision"
    loss_unit: ClassVar[str] = "nats an image"

    source: str | None = Field(
        None,
        description="torchvision, a local weights file or a folder; None: trained from scratch",
        json_schema_extra=NOT_HASHED,
    )
    weights: str = Field("IMAGENET1K_V1", description="which of torchvision's weights")
    arch: VggName | None = Field(None, description="None: the source's own, else small")
    channels: Channels | None = Field(
        None, description="of a small one: widths of its 3 x 3 convolutions, M for a pooling"
    )
    batch_norm: bool | None = Field(None, description="of a small one: after each convolution")
    grid: PositiveInt | None = Field(
        None, description="of a small one: features are pooled to grid x grid positions"
    )
    image_size: PositiveInt | None = Field(
        None, description="pixels; None: the source's own, else 32 (small) or 224"
    )
    num_classes: PositiveInt | None = Field(
        None, description="of the pre-training labels; None: the source's own, else 1000"
    )
    mean: Means | None = Field(
        None, description="colours' mean in [0, 1]; None: the source's own, else ImageNet's"
    )
    std: Spreads | None = Field(None, description="their standard deviation, likewise")
    init_seed: int = Field(0, ge=0, description="of the weights that training starts from")
    allow_pickle: bool = Field(
        False,
        description="read pickled weights with the weights_only unpickler",
        json_schema_extra=NOT_HASHED,
    )

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Tell whether config.json names this family."""
        return says(folder, "family") == VggPTM.family

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source is None:
            self._architecture()
        return self

    def load(self) -> VggPTM:
        """Return the VGG, untrained or with the source's weights."""
        architecture, origin = self._architecture(), self._origin()
        weights = origin.weights() if origin is not None else None  # a refusal comes first
        module = architecture.build(self.init_seed)
        if weights is not None:
            load_strictly(module, weights, f"model 'vgg', source {self.source}")
        return VggPTM(module, architecture)

    def reload(self, folder: Path) -> VggPTM:
        """Return a PTM that a stage saved."""
        return load_vgg(folder)

    def content(self) -> dict[str, Any]:
        """Return the architecture, and checksum or released file of the weights or their seed."""
        origin = self._origin()
        drawn = {"init_seed": self.init_seed}
        return {
            "architecture": self._architecture().settings(),
            "weights": drawn if origin is None else origin.content(),
        }

    @property
    def needs_pretraining(self) -> bool:
        """Whether no weights are given."""
        return self.source is None

    @property
    def untrained(self) -> bool:
        """Whether no weights are given."""
        return self.needs_pretraining

    def sample_encoder(self) -> ImageEncoder:
        """Return what decodes images to the input size."""
        return ImageEncoder(self._architecture().image_size)

    def label_limit(self) -> int | None:
        """Return the classes asked for; of a source, None: its weights say it."""
        return self._architecture().num_classes if self.source is None else self.num_classes

    def default_label(self) -> str:
        """Return the architecture's name, or that of the file or folder."""
        if self.source in (None, TORCHVISION):
            arch = self.arch or SMALL
            return f"vgg-{arch}" if arch == SMALL else arch
        return Path(str(self.source)).stem

    def _architecture(self) -> VggArchitecture:
        named = self.arch not in (None, SMALL)
        defaults = {"image_size": INPUT} if named else {}
        return architecture_of(VggArchitecture, self, self._origin(), defaults)

    def _origin(self) -> Origin | None:
        if self.source is None:
            return None
        if self.source == TORCHVISION:
            if self.arch in (None, SMALL):
                raise ModelError("model 'vgg': source torchvision needs an arch, such as vgg16")
            return ReleasedWeights(str(self.arch), self.weights, self.allow_pickle)
        origin = local_origin(self.source, "vgg", allow_pickle=self.allow_pickle)
        if origin is None:
            raise ModelError(
                f"model 'vgg': source {self.source!r} does not exist; allowed: torchvision, a "
                "weights file, or a folder with config.json and model.safetensors"
            )
        return origin
