"""Model `vit`: a ViT to be trained from scratch, torchvision's, one of the hub, or a local one."""

import re
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from recipe_ray.base.errors import ModelError
from recipe_ray.base.loading import says
from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.hub import fetch_model
from recipe_ray.data.images import ImageEncoder
from recipe_ray.models.family import MODELS, ModelRef
from recipe_ray.models.origins import (
    LocalFolder,
    Origin,
    architecture_of,
    load_strictly,
    local_origin,
)
from recipe_ray.models.torchvision_weights import TORCHVISION, ReleasedWeights
from recipe_ray.models.vision import Means, Spreads
from recipe_ray.models.vit import VitPTM, load_vit, untrained_vit
from recipe_ray.models.vit_network import SMALL, VitArchitecture, VitName
from recipe_ray.models.vit_transformers import (
    is_transformers_folder,
    read_config,
    statistics_of,
)

INPUT = 224  # pixels, of the ViTs that have a name
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STATISTICS = ("mean", "std")


@MODELS.register("vit")
class Vit(ModelRef):
    """A vision transformer; without a source it is untrained, and a pretrain stage trains it."""

    learns_from: ClassVar[frozenset[str]] = frozenset({"image", "label"})
    reads: ClassVar[str] = "image"
    library: ClassVar[str] = "torchvision"
    loss_unit: ClassVar[str] = "nats an image"

    source: str | None = Field(
        None,
        description="torchvision, a local weights file or folder, or a hub id such as "
        "google/vit-base-patch16-224; None: trained from scratch",
        json_schema_extra=NOT_HASHED,
    )
    weights: str = Field("IMAGENET1K_V1", description="which of torchvision's weights")
    revision: str | None = Field(
        None, description="hub commit; without one the newest is looked up and then pinned"
    )
    arch: VitName | None = Field(None, description="None: the source's own, else small")
    patch_size: PositiveInt | None = Field(None, description="of a small one: pixels; None: 4")
    width: PositiveInt | None = Field(None, description="of a small one; None: 128")
    depth: PositiveInt | None = Field(None, description="of a small one: blocks; None: 4")
    heads: PositiveInt | None = Field(None, description="of a small one; None: 4")
    mlp: PositiveInt | None = Field(None, description="of a small one: neurons a block; None: 512")
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
        """Tell whether config.json names this family, or transformers' ViT."""
        return VitPTM.family in (says(folder, "family"), says(folder, "model_type"))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source is None:
            self._architecture(None)
        return self

    def load(self) -> VitPTM:
        """Return the ViT, untrained or with the source's weights."""
        folder = self._transformers_folder()
        if folder is not None:
            self._check_asked()
            mean, std = statistics_of(folder)
            statistics = (self.mean or mean, self.std or std)
            return load_vit(folder, statistics=statistics, allow_pickle=self.allow_pickle)
        origin = self._origin()
        architecture = self._architecture(origin)
        weights = origin.weights() if origin is not None else None  # a refusal comes first
        ptm = untrained_vit(architecture, self.init_seed)
        if weights is not None:
            load_strictly(ptm.module, weights, f"model 'vit', source {self.source}")
        return ptm

    def reload(self, folder: Path) -> VitPTM:
        """Return a PTM that a stage saved."""
        return load_vit(folder)

    def content(self) -> dict[str, Any]:
        """Return what decides the weights and the normalisation: settings and checksums, a commit.

        Of a transformers folder all files count, since its settings lie in several.
        """
        changed = {name: value for name in _STATISTICS if (value := getattr(self, name))}
        if self._is_hub_id:
            self._check_asked()
            return {"hub": self.source, "commit": self._commit(), **changed}
        origin = self._origin()
        if isinstance(origin, LocalFolder) and is_transformers_folder(origin.path):
            self._check_asked()
            return {"transformers": origin.content(".json"), **changed}
        drawn = {"init_seed": self.init_seed}
        return {
            "architecture": self._architecture(origin).settings(),
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
        folder = self._transformers_folder()
        if folder is not None:
            return ImageEncoder(read_config(folder).image_size)
        return ImageEncoder(self._architecture(self._origin()).image_size)

    def label_limit(self) -> int | None:
        """Return the classes asked for; of a source, None: its weights say it."""
        return self._architecture(None).num_classes if self.source is None else self.num_classes

    def default_label(self) -> str:
        """Return the architecture's name, or the last part of the source's."""
        if self.source in (None, TORCHVISION):
            arch = self.arch or SMALL
            return f"vit-{arch}" if arch == SMALL else arch
        name = str(self.source).rstrip("/").rpartition("/")[2]
        return name if self._is_hub_id else Path(name).stem

    def _architecture(self, origin: Origin | None) -> VitArchitecture:
        named = self.arch not in (None, SMALL)
        defaults = {"image_size": INPUT} if named else {}
        return architecture_of(VitArchitecture, self, origin, defaults)

    def _origin(self) -> Origin | None:
        if self.source is None:
            return None
        if self.source == TORCHVISION:
            if self.arch in (None, SMALL):
                raise ModelError("model 'vit': source torchvision needs an arch, such as vit_b_16")
            return ReleasedWeights(str(self.arch), self.weights, self.allow_pickle)
        origin = local_origin(self.source, "vit", allow_pickle=self.allow_pickle)
        if origin is None:
            raise ModelError(f"model 'vit': source {self.source!r} does not exist")
        return origin

    @property
    def _is_hub_id(self) -> bool:
        if self.source is None or self.source == TORCHVISION:
            return False
        local = self.source.startswith(("/", ".", "~")) or Path(self.source).exists()
        return not local

    def _transformers_folder(self) -> Path | None:
        if self._is_hub_id:
            source = str(self.source)
            return fetch_model(source, self.revision, allow_pickle=self.allow_pickle).path
        origin = self._origin()
        found = isinstance(origin, LocalFolder) and is_transformers_folder(origin.path)
        return origin.path if isinstance(origin, LocalFolder) and found else None

    def _commit(self) -> str:
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            return self.revision
        source = str(self.source)
        return fetch_model(source, self.revision, allow_pickle=self.allow_pickle).commit

    def _check_asked(self) -> None:
        """Raise ModelError for a setting that transformers' config.json decides."""
        settings = [name for name in VitArchitecture.model_fields if name not in _STATISTICS]
        asked = [name for name in settings if getattr(self, name) is not None]
        if asked:
            raise ModelError(
                f"model 'vit', source {self.source}: {', '.join(asked)} cannot be given, its "
                f"config.json says it; allowed: {' and '.join(_STATISTICS)}"
            )
