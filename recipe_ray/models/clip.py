"""Model `clip`: one of open_clip's, a local one, or a small one made from scratch."""

from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from recipe_ray.base.errors import SpecError
from recipe_ray.base.foreign import is_there
from recipe_ray.base.loading import check_adapter, weights_checksum
from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.hub import is_commit
from recipe_ray.data.rows import Encode
from recipe_ray.models.family import MODELS, ModelRef
from recipe_ray.models.images.clip import ClipPTM, load_clip, pair_encoder, reload_clip
from recipe_ray.models.images.clip_config import ClipConfig, architecture, build
from recipe_ray.models.images.clip_weights import (
    CONFIG_FILE,
    Checkpoint,
    from_hub,
    from_source,
    openai_statistics,
)


@MODELS.register("clip")
class Clip(ModelRef):
    """CLIP: `arch` and `pretrained` from the hub, `source` from here, else pre-trained anew."""

    learns_from: ClassVar[frozenset[str]] = frozenset({"image", "caption"})
    reads: ClassVar[str] = "image"
    loss_unit: ClassVar[str] = "nats a pair"

    arch: str | None = Field(None, description="architecture by open_clip's name, as ViT-B-32")
    pretrained: str | None = Field(None, description="open_clip's tag of weights, such as openai")
    revision: str | None = Field(
        None, description="hub commit; without one the newest is looked up and then pinned"
    )
    source: str | None = Field(
        None,
        description="folder as open_clip saves one, or a file of weights (then `arch`, too)",
        json_schema_extra=NOT_HASHED,
    )
    config: ClipConfig = Field(ClipConfig(), description="of one from scratch without `arch`")
    init_seed: int = Field(0, ge=0, description="of the weights that one from scratch begins with")
    allow_pickle: bool = Field(
        False,
        description="read pickle weights with the weights_only unpickler",
        json_schema_extra=NOT_HASHED,
    )
    ignore_adapter: bool = Field(
        False,
        description="leave an adapter (LoRA) beside the weights out of the result",
        json_schema_extra=NOT_HASHED,
    )

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Tell whether a folder is one that open_clip loads."""
        return is_there(folder / CONFIG_FILE)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrained is not None and (self.arch is None or self.source is not None):
            raise SpecError("pretrained: goes with `arch`, and not with `source`")
        if self.revision is not None and self.pretrained is None:
            raise SpecError("revision: is that of `pretrained` weights; none are asked for")
        if self.config != ClipConfig() and (self.arch is not None or self.source is not None):
            raise SpecError("config: is for a CLIP from scratch, without `arch` and `source`")
        return self

    @property
    def opens_with(self) -> str:
        """Return open_clip."""
        return "open_clip"

    def load(self) -> ClipPTM:
        """Return the checkpoint, or random weights drawn by `init_seed`."""
        checkpoint = self._checkpoint()
        if checkpoint is not None:
            return load_clip(checkpoint, allow_pickle=self.allow_pickle)
        config = self._config()
        return ClipPTM(build(config, self.init_seed), config, openai_statistics())

    def reload(self, folder: Path) -> ClipPTM:
        """Return a PTM that a stage saved."""
        return reload_clip(folder)

    def content(self) -> dict[str, Any]:
        """Return tag and commit, the checksum of a file, or the configuration and the seed."""
        if self.pretrained is not None and self.revision and is_commit(self.revision):
            return {"arch": self.arch, "pretrained": self.pretrained, "commit": self.revision}
        checkpoint = self._checkpoint()
        if checkpoint is None:
            return {"config": self._config().identity(), "init_seed": self.init_seed}
        # the hub's cache has a folder for each commit
        commit = checkpoint.weights.parent.name
        if self.pretrained is not None and is_commit(commit):
            return {"arch": self.arch, "pretrained": self.pretrained, "commit": commit}
        return {
            "weights": weights_checksum(checkpoint.weights, checkpoint.within),
            "config": checkpoint.config.identity(),
            "statistics": checkpoint.statistics,
        }

    def pinned(self) -> Self:
        """Return the model with the commit of its `pretrained` weights; another one as it is."""
        commit = self.content().get("commit") if self.pretrained is not None else None
        return self if commit is None else self.revised(revision=commit)

    @property
    def needs_pretraining(self) -> bool:
        """Whether it starts from random weights."""
        return self.pretrained is None and self.source is None

    @property
    def untrained(self) -> bool:
        """The same: there is no CLIP that lacks only a head."""
        return self.needs_pretraining

    def sample_encoder(self) -> Encode:
        """Return the encoder that the loaded PTM has."""
        if self.source is not None:
            return pair_encoder(from_source(self.source, self.arch).config)
        return pair_encoder(self._config())

    def default_label(self) -> str:
        """Return what it was called where it comes from, after `clip`."""
        if self.source is not None:
            return f"{self.name}-{Path(self.source).stem}"
        return "-".join(part for part in (self.name, self.arch, self.pretrained) if part)

    def _checkpoint(self) -> Checkpoint | None:
        if self.source is not None:
            checkpoint = from_source(self.source, self.arch)
            if checkpoint.within is not None:
                check_adapter(checkpoint.within, ignore=self.ignore_adapter)
            return checkpoint
        if self.arch is not None and self.pretrained is not None:
            return from_hub(
                self.arch, self.pretrained, self.revision, allow_pickle=self.allow_pickle
            )
        return None

    def _config(self) -> ClipConfig:
        return self.config if self.arch is None else architecture(self.arch)
