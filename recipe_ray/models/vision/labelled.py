"""What families pre-trained on labelled images share (`vgg`, `vit`, `timm`): how they are named.

A family adds its own parts: the fields of a small network, how it is built, and from what else it
can be read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from recipe_ray.base.errors import ModelError, SpecError
from recipe_ray.base.spec import NOT_HASHED, Spec
from recipe_ray.models.family import AllowPickle, IgnoreAdapter, ModelRef
from recipe_ray.models.vision.vision import IMAGENET, Means, Spreads
from recipe_ray.models.vision.weight_source import (
    TORCHVISION,
    LocalFolder,
    Origin,
    ReleasedWeights,
    architecture_of,
    load_strictly,
    local_origin,
)

if TYPE_CHECKING:
    from torch import Tensor

    from recipe_ray.data.images import ImageEncoder

SMALL = "small"
# bounds of what config.json may ask for: neither the pixels of a VGG nor the time that each layer
# takes to build shows in the weights; far above any network in use
MAX_PIXELS = 2048
MAX_LAYERS = 256
NAMED_SIZE = 224  # pixels, of the networks that have a name


class LabelledArchitecture(Spec):
    """An architecture in full: what config.json holds, and with the weights all that decides a PTM.

    One is known by a library's name, or is `small` and spelt out in the fields `of_small`.
    """

    of_small: ClassVar[frozenset[str]]

    arch: str = SMALL
    image_size: int = Field(32, gt=0, le=MAX_PIXELS)
    num_classes: PositiveInt = 1000
    mean: Means = IMAGENET[0]
    std: Spreads = IMAGENET[1]

    @model_validator(mode="after")
    def _check_named(self) -> Self:
        foreign = sorted(self.of_small & self.model_fields_set)
        if self.arch != SMALL and foreign:
            raise SpecError(f"{', '.join(foreign)}: only for arch small, not for {self.arch}")
        return self

    def settings(self) -> dict[str, Any]:
        """Return the fields that mean something, as plain data."""
        unused = set() if self.arch == SMALL else set(self.of_small)
        return self.model_dump(mode="json", exclude=unused)

    @abstractmethod
    def build(self, seed: int) -> Any:
        """Return an untrained network, drawn from `seed` alone."""

    def filled(self, weights: Mapping[str, Tensor], where: str) -> Any:
        """Return the network with these weights, which are compared with it before it is made.

        Raises ModelError, naming `where`, for weights that are not of this architecture.
        """
        from recipe_ray.models.config_fields import outline

        module = outline(lambda: self.build(0), where)
        load_strictly(module, weights, where)
        return module


class LabelledReference(ModelRef):
    """A network of one of these families; without a source it is untrained, to be pre-trained."""

    learns_from: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    reads: ClassVar[str] = "image"
    loss_unit: ClassVar[str] = "nats per image"
    pipeline_tag: ClassVar[str] = "image-classification"
    has = ModelRef.has | {"Attackable"}
    architecture_kind: ClassVar[type[LabelledArchitecture]]
    sources: ClassVar[str] = "a weights file, or a folder with config.json and model.safetensors"

    source: str | None = Field(
        None,
        description="a local weights file or a folder; None: trained from scratch",
        json_schema_extra=NOT_HASHED,
    )
    arch: str | None = Field(None, description="None: the source's own, else small")
    image_size: PositiveInt | None = Field(
        None, description="pixels; None: the source's own, else 32 (small) or 224"
    )
    num_classes: PositiveInt | None = Field(
        None, description="number of pre-training labels; None: the source's own, else 1000"
    )
    mean: Means | None = Field(
        None, description="colours' mean in [0, 1]; None: the source's own, else ImageNet's"
    )
    std: Spreads | None = Field(
        None, description="colours' standard deviation; None: as for the mean"
    )
    init_seed: int = Field(0, ge=0, description="of the weights that training starts from")
    allow_pickle: AllowPickle = False
    ignore_adapter: IgnoreAdapter = False

    @model_validator(mode="after")
    def _check_architecture(self) -> Self:
        if self.source is None:
            self.architecture(None)
        return self

    def architecture(self, origin: Origin | None) -> Any:
        """Return the architecture: what is asked for, else what the origin says, else defaults."""
        defaults = {} if self.arch in (None, SMALL) else {"image_size": NAMED_SIZE}
        return architecture_of(self.architecture_kind, self, origin, defaults)

    def origin(self) -> Origin | None:
        """Return where the weights come from; raise ModelError for a source that is not there."""
        if self.source is None:
            return None
        origin = local_origin(
            self.source,
            self.name,
            allow_pickle=self.allow_pickle,
            ignore_adapter=self.ignore_adapter,
        )
        if origin is None:
            raise ModelError(
                f"model {self.name!r}: source {self.source!r} does not exist; allowed: "
                f"{self.sources}"
            )
        return origin

    def network(self, architecture: LabelledArchitecture, origin: Origin | None) -> Any:
        """Return the network, untrained or with the origin's weights."""
        if origin is None:
            from recipe_ray.models.config_fields import check_drawn

            check_drawn(lambda: architecture.build(self.init_seed), f"model {self.name!r}")
            return architecture.build(self.init_seed)
        return architecture.filled(origin.weights(), f"model {self.name!r}, source {self.source}")

    def content(self) -> dict[str, Any]:
        """Return the architecture, and checksum or released file of the weights or their seed."""
        origin = self.origin()
        drawn = {"init_seed": self.init_seed}
        return {
            "architecture": self.architecture(origin).settings(),
            "weights": drawn if origin is None else origin.content(),
        }

    def home(self) -> Path | None:
        """Return the folder, if the source is one."""
        origin = self.origin()
        return origin.path if isinstance(origin, LocalFolder) else None

    def left_out(self) -> list[str]:
        """Return what is said of an adapter in the folder, if the source is one."""
        from recipe_ray.base.loading import adapter_note

        origin = self.origin()
        return adapter_note(origin.path) if isinstance(origin, LocalFolder) else []

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
        from recipe_ray.data.images import ImageEncoder

        return ImageEncoder(self.architecture(self.origin()).image_size)

    def label_limit(self) -> int | None:
        """Return the classes asked for; of a source, None: its weights say it."""
        if self.source is not None:
            return self.num_classes
        limit: int = self.architecture(None).num_classes
        return limit


class TorchvisionReference(LabelledReference):
    """A network in torchvision's layout, which may have the weights that torchvision releases."""

    example: ClassVar[str]  # of a name
    sources: ClassVar[str] = f"torchvision, {LabelledReference.sources}"

    source: str | None = Field(
        None,
        description="torchvision, a local weights file or a folder; None: trained from scratch",
        json_schema_extra=NOT_HASHED,
    )
    weights: str = Field("IMAGENET1K_V1", description="which of torchvision's weights")

    def origin(self) -> Origin | None:
        """Return where the weights come from; raise ModelError for a source that is not there."""
        if self.source != TORCHVISION:
            return super().origin()
        if self.arch in (None, SMALL):
            raise ModelError(
                f"model {self.name!r}: source torchvision needs an arch, such as {self.example}"
            )
        return ReleasedWeights(str(self.arch), self.weights, self.allow_pickle)

    @property
    def opens_with(self) -> str:
        """Return torchvision."""
        return "torchvision"

    def default_label(self) -> str:
        """Return the architecture's name, or that of the file or folder."""
        if self.source in (None, TORCHVISION):
            arch = self.arch or SMALL
            return f"{self.name}-{arch}" if arch == SMALL else arch
        return Path(str(self.source)).stem
