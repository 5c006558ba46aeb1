"""Model `vit`: a ViT to be trained from scratch, torchvision's, one of the hub, or a local one."""

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, PositiveInt

from recipe_ray.base.errors import ModelError
from recipe_ray.base.loading import says
from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.hub import fetch_model, model_commit
from recipe_ray.data.images import ImageEncoder
from recipe_ray.models.contents import check_readable
from recipe_ray.models.family import MODELS
from recipe_ray.models.images.labelled import LabelledArchitecture, LabelledReference
from recipe_ray.models.images.origins import LocalFolder
from recipe_ray.models.images.torchvision_weights import TORCHVISION
from recipe_ray.models.images.vit import VitPTM, load_vit, torchvision_vit
from recipe_ray.models.images.vit_network import VitArchitecture, VitName
from recipe_ray.models.images.vit_transformers import (
    is_transformers_folder,
    read_config,
    statistics_of,
)

_STATISTICS = ("mean", "std")


@MODELS.register("vit")
class Vit(LabelledReference):
    """A vision transformer; without a source it is untrained, and a pretrain stage trains it."""

    architecture_kind: ClassVar[type[LabelledArchitecture]] = VitArchitecture
    example: ClassVar[str] = "vit_b_16"

    source: str | None = Field(
        None,
        description="torchvision, a local weights file or folder, or a hub id such as "
        "google/vit-base-patch16-224; None: trained from scratch",
        json_schema_extra=NOT_HASHED,
    )
    revision: str | None = Field(
        None, description="hub commit; without one the newest is looked up and then pinned"
    )
    arch: VitName | None = Field(None, description="None: the source's own, else small")
    patch_size: PositiveInt | None = Field(None, description="of a small one: pixels; None: 4")
    width: PositiveInt | None = Field(None, description="of a small one; None: 128")
    depth: PositiveInt | None = Field(None, description="of a small one: blocks; None: 4")
    heads: PositiveInt | None = Field(None, description="of a small one; None: 4")
    mlp: PositiveInt | None = Field(None, description="of a small one: neurons a block; None: 512")

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Tell whether config.json names this family, or transformers' ViT."""
        return VitPTM.family in (says(folder, "family"), says(folder, "model_type"))

    def load(self) -> VitPTM:
        """Return the ViT, untrained or with the source's weights."""
        folder = self._transformers_folder()
        if folder is not None:
            self._check_asked()
            mean, std = statistics_of(folder)
            statistics = (self.mean or mean, self.std or std)
            return load_vit(
                folder,
                statistics=statistics,
                allow_pickle=self.allow_pickle,
                ignore_adapter=self.ignore_adapter,
            )
        origin = self.origin()
        architecture = self.architecture(origin)
        return torchvision_vit(self.network(architecture, origin), architecture)

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
            commit = model_commit(str(self.source), self.revision, self.allow_pickle)
            return {"hub": self.source, "commit": commit, **changed}
        origin = self.origin()
        if isinstance(origin, LocalFolder) and is_transformers_folder(origin.path):
            self._check_asked()
            return {"transformers": origin.content(".json"), **changed}
        return super().content()

    def pinned(self) -> Self:
        """Return the model with the hub commit looked up; another origin as it is."""
        return self.revised(revision=self.content()["commit"]) if self._is_hub_id else self

    @property
    def opens_with(self) -> str:
        """Return the library whose layout the weights have, which saving keeps."""
        return "transformers" if self._transformers_folder() is not None else super().opens_with

    def sample_encoder(self) -> ImageEncoder:
        """Return what decodes images to the input size."""
        folder = self._transformers_folder()
        if folder is None:
            return super().sample_encoder()
        return ImageEncoder(read_config(folder).image_size)

    def default_label(self) -> str:
        """Return the architecture's name, or the last part of the source's."""
        if self._is_hub_id:
            return str(self.source).rstrip("/").rpartition("/")[2]
        return super().default_label()

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
        origin = self.origin()
        if not isinstance(origin, LocalFolder):
            return None
        check_readable(origin.path)
        return origin.path if is_transformers_folder(origin.path) else None

    def _check_asked(self) -> None:
        """Raise ModelError for a setting that transformers' config.json decides."""
        settings = [name for name in VitArchitecture.model_fields if name not in _STATISTICS]
        asked = [name for name in settings if getattr(self, name) is not None]
        if asked:
            raise ModelError(
                f"model 'vit', source {self.source}: {', '.join(asked)} cannot be given, its "
                f"config.json says it; allowed: {' and '.join(_STATISTICS)}"
            )
