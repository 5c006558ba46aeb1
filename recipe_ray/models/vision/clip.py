"""Family CLIP: open_clip's module, its two towers and what attackers and defenders need of it.

Model `clip`: one of open_clip's, a local one, or a small one made from scratch. The image encoder
is attacked, purified and used in downstream tasks. The text tower serves the contrastive loss.

Legend: B images, L token ids of a caption, E width of the embeddings both towers put out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from pydantic import Field, model_validator

from recipe_ray.base.errors import DataError, SpecError
from recipe_ray.base.foreign import is_there
from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.hub import is_commit
from recipe_ray.models.family import (
    MODELS,
    AllowPickle,
    IgnoreAdapter,
    ModelRef,
    Revision,
    Scope,
)
from recipe_ray.models.vision.clip_weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    ClipConfig,
    Statistics,
    architecture,
    build,
    fill,
    fitting,
    from_hub,
    from_source,
    open_clip,
    openai_statistics,
)
from recipe_ray.models.vision.labelled import MAX_LAYERS
from recipe_ray.models.vision.vision import VisionPTM
from recipe_ray.models.vision.vit_network import PROJECTIONS, projection

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipe_ray.data.images import ImageBatch, ImageEncoder, ImageRows, ImageSample
    from recipe_ray.data.rows import Encode, Ints
    from recipe_ray.learn.metrics import Share
    from recipe_ray.learn.neuron_stats import NeuronLayer
    from recipe_ray.learn.objective import Objective, Terms, Weight
    from recipe_ray.learn.runtime import Runtime

_PENALISED = ("fc1", "fc2", *PROJECTIONS)  # of the vision encoder (docs/method.md section 2)


class ClipPTM(VisionPTM):
    """A CLIP; its weight groups, neurons and features are those of the vision encoder."""

    family: ClassVar[str] = "clip"
    target_range: tuple[float, float] = (-1.0, 1.0)

    def __init__(self, module: nn.Module, config: ClipConfig, statistics: Statistics) -> None:
        super().__init__(module, config.vision_cfg.image_size, statistics)
        self.config = config
        self._statistics = statistics

    # -- images and captions -------------------------------------------------------------------

    def encoder(self, max_length: int) -> Encode:
        """Return the function (pairs or images, numbers [N]) -> rows.

        Captions are cut to the text tower's own context, so `max_length` is not used.
        """
        return pair_encoder(self.config)

    @property
    def feature_size(self) -> int:
        """Return E."""
        return self.config.embed_dim

    def features(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return the projected image embedding before it is normalised [B, E].

        `encode_image` returns it, so every user of the encoder builds on it (a classifier,
        retrieval, zero-shot labels): a vector that a trigger reaches here reaches all of them. The
        normalised one has length 1 and cannot reach a target of ones.
        """
        embedding: Tensor = module.visual(self.normalised(batch.pixels))
        return embedding

    def layers_of(self, module: Any) -> list[Any]:
        """Return the blocks of the vision encoder."""
        return list(module.visual.transformer.resblocks)

    # -- pre-training --------------------------------------------------------------------------

    def pretraining_objective(self) -> Objective:
        """Return the contrastive loss over the global batch."""
        from recipe_ray.learn.contrastive import contrastive

        def loss(module: Any, batch: ImageBatch) -> Terms:
            if batch.captions is None:
                raise DataError("CLIP learns from pairs, and these images have no captions")
            images, texts = self.features(module, batch), module.encode_text(batch.captions)
            term = contrastive(images, texts, module.logit_scale, batch.index)
            return {"contrastive": term}

        return loss

    def pretraining_quality(self, rows: ImageRows, runtime: Runtime) -> dict[str, Share]:
        """Return recall at 1 over all pairs, from image to text and back."""
        from recipe_ray.models.vision.heads import retrieval

        return retrieval(self, rows, runtime)

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the text tower and the temperature: all but the vision encoder."""
        own = {id(parameter) for parameter in self.module.visual.parameters()}
        return [parameter for parameter in self.module.parameters() if id(parameter) not in own]

    # -- weights and neurons -------------------------------------------------------------------

    @property
    def weight_groups(self) -> tuple[str, ...]:
        """Return the groups, with one member per block."""
        return (*_PENALISED, "attention_out")

    def weight_group(self, name: str) -> list[Weight]:
        """Return a matrix of every block; query, key and value are rows of a fused one."""
        if name not in self.weight_groups:
            raise self.unknown_group(name)
        return [_weight_of(block, name) for block in self.layers_of(self.module)]

    @property
    def purification_scope(self) -> tuple[tuple[str, ...], Scope]:
        """Return the paper's layers of CLIP; everything trains."""
        return _PENALISED, "all"

    def neuron_layers(self) -> list[NeuronLayer]:
        """Return fc1 of every block."""
        from recipe_ray.learn.neuron_stats import NeuronLayer

        return [
            NeuronLayer(b.mlp.c_fc.weight, b.mlp.c_fc.bias) for b in self.layers_of(self.module)
        ]

    def neuron_activations(self, module: Any, batch: ImageBatch) -> list[Tensor]:
        """Return fc1 after its activation at the class token, [B, n] per block."""
        from recipe_ray.learn.neuron_stats import outputs_of

        activations = [block.mlp.gelu for block in self.layers_of(module)]
        with outputs_of(activations, lambda states: states[:, 0]) as seen:
            self.features(module, batch)
        return [seen[place] for place in range(len(activations))]

    # -- classifier and files ------------------------------------------------------------------

    def classifier(self, num_labels: int, seed: int, rows: Sequence[ImageRows]) -> Any:
        """Return a linear layer on the features; the text tower is not part of it.

        Parameters that no loss reaches would hold up DDP.
        """
        from recipe_ray.models.vision.heads import FeatureClassifier, ImageTower

        return FeatureClassifier(self, num_labels, seed, body=ImageTower(self.module.visual))

    def save(self, folder: Path) -> None:
        """Write what `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = self.module.state_dict()
        save_file({n: t.cpu().contiguous() for n, t in state.items()}, folder / WEIGHTS_FILE)
        mean, std = self._statistics
        described = {
            "model_cfg": self.config.for_open_clip(),
            "preprocess_cfg": {
                "mean": mean,
                "std": std,
                "interpolation": "bilinear",  # as `data/images.py` resizes
                "resize_mode": "shortest",
            },
        }
        (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n")


@dataclass(frozen=True)
class PairEncoder:
    """Images and their captions' token ids, in the column `caption` [N, L] if there are any."""

    images: ImageEncoder
    context_length: int

    @property
    def size(self) -> int:
        """The images' pixels per side."""
        return self.images.size

    def __call__(self, samples: Sequence[ImageSample], index: Ints) -> ImageRows:
        rows = self.images(samples, index)
        captions = [sample.caption for sample in samples if sample.caption is not None]
        if not captions:
            return rows
        if len(captions) < len(samples):
            raise DataError(f"{len(samples) - len(captions)} of these images have no caption")
        return rows.with_columns(caption=token_ids(captions, self.context_length))


def pair_encoder(config: ClipConfig) -> PairEncoder:
    """Return the encoder of an architecture; no weights are needed."""
    from recipe_ray.data.images import ImageEncoder

    context = config.text_cfg.context_length
    return PairEncoder(ImageEncoder(config.vision_cfg.image_size), context)


def token_ids(captions: Sequence[str], context_length: int) -> Ints:
    """Return captions as ids [N, context_length]: cut to fit, their end kept; zeros behind it."""
    return cast("Ints", _tokenizer()(list(captions), context_length=context_length).numpy())


@cache
def _tokenizer() -> Any:
    return open_clip().SimpleTokenizer()  # its vocabulary is in the package


def load_clip(checkpoint: Checkpoint, *, allow_pickle: bool = False) -> ClipPTM:
    """Return a CLIP; raise UnsafeModelError for a pickle that was not allowed, or ModelError."""
    import torch

    from recipe_ray.base.loading import read_weight_file

    read = read_weight_file(checkpoint.weights, allow_pickle=allow_pickle, within=checkpoint.within)
    weights = fitting(read, checkpoint)
    module = build(checkpoint.config, seed=0)
    with torch.no_grad():
        fill(module, weights, checkpoint.weights)
    return ClipPTM(module, checkpoint.config, checkpoint.statistics)


def reload_clip(folder: Path) -> ClipPTM:
    """Return a CLIP that `ClipPTM.save` wrote."""
    return load_clip(from_source(str(folder), None))


def _weight_of(block: Any, name: str) -> Weight:
    if name in PROJECTIONS:
        return projection(block.attn, name)
    found: nn.Parameter = {
        "fc1": block.mlp.c_fc,
        "fc2": block.mlp.c_proj,
        "attention_out": block.attn.out_proj,
    }[name].weight
    return found


@MODELS.register("clip")
class Clip(ModelRef):
    """CLIP: `arch` and `pretrained` from the hub, `source` from here, else to be pre-trained."""

    learns_from: ClassVar[frozenset[str]] = frozenset({"image", "caption"})
    reads: ClassVar[str] = "image"
    loss_unit: ClassVar[str] = "nats per pair"
    pipeline_tag: ClassVar[str] = "zero-shot-image-classification"
    has = ModelRef.has | {"Attackable"}

    arch: str | None = Field(None, description="its name in open_clip, such as ViT-B-32")
    pretrained: str | None = Field(None, description="open_clip's tag of weights, such as openai")
    revision: Revision = None
    source: str | None = Field(
        None,
        description="folder that open_clip saved, or a weights file (then also give `arch`)",
        json_schema_extra=NOT_HASHED,
    )
    config: ClipConfig = Field(ClipConfig(), description="of a new CLIP, if there is no `arch`")
    init_seed: int = Field(0, ge=0, description="of the initial weights of a new CLIP")
    allow_pickle: AllowPickle = False
    ignore_adapter: IgnoreAdapter = False

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Tell whether a folder is one that open_clip loads."""
        return is_there(folder / CONFIG_FILE)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrained is not None and (self.arch is None or self.source is not None):
            raise SpecError("pretrained: goes with `arch`, and not with `source`")
        if self.revision is not None and self.pretrained is None:
            raise SpecError("revision: it belongs to `pretrained`, which is not given")
        if self.config != ClipConfig() and (self.arch is not None or self.source is not None):
            raise SpecError("config: it describes a new CLIP, without `arch` and `source`")
        return self

    @property
    def opens_with(self) -> str:
        """Return open_clip."""
        return "open_clip"

    def home(self) -> Path | None:
        """Return the folder of the checkpoint, or the snapshot of the hub."""
        checkpoint = self._checkpoint()
        return checkpoint.weights.parent if checkpoint is not None else None

    def load(self) -> ClipPTM:
        """Return the checkpoint, or random weights drawn by `init_seed`."""
        checkpoint = self._checkpoint()
        if checkpoint is not None:
            return load_clip(checkpoint, allow_pickle=self.allow_pickle)
        from recipe_ray.models.config_fields import check_drawn

        config = self._config()
        deepest = max(config.vision_cfg.layers, config.text_cfg.layers)
        if deepest > MAX_LAYERS:
            raise SpecError(f"model {self.name!r}: {deepest} layers; allowed: at most {MAX_LAYERS}")
        check_drawn(lambda: build(config, self.init_seed), f"model {self.name!r}")
        return ClipPTM(build(config, self.init_seed), config, openai_statistics())

    def reload(self, folder: Path) -> ClipPTM:
        """Return a PTM that a stage saved."""
        return reload_clip(folder)

    def content(self) -> dict[str, Any]:
        """Return tag and commit, the checksum of a file, or the configuration and the seed."""
        from recipe_ray.base.loading import weights_checksum

        released = {"arch": self.arch, "pretrained": self.pretrained}
        if self.pretrained is not None and self.revision and is_commit(self.revision):
            return {**released, "commit": self.revision}
        checkpoint = self._checkpoint()
        if checkpoint is None:
            return {"config": self._config().identity(), "init_seed": self.init_seed}
        commit = checkpoint.weights.parent.name  # the hub's cache has a folder for each
        if self.pretrained is not None and is_commit(commit):
            return {**released, "commit": commit}
        return {
            "weights": weights_checksum(checkpoint.weights, checkpoint.within),
            "config": checkpoint.config.identity(),
            "statistics": checkpoint.statistics,
        }

    def pinned(self) -> Self:
        """Return the model with the commit of its `pretrained` weights; another one as it is."""
        commit = self.content().get("commit") if self.pretrained is not None else None
        return self if commit is None else self.revised(revision=commit)

    def left_out(self) -> list[str]:
        """Return what is said of an adapter in the folder, if the source is one."""
        from recipe_ray.base.loading import adapter_note

        within = checkpoint.within if (checkpoint := self._checkpoint()) is not None else None
        return adapter_note(within) if within is not None else []

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
        config = from_source(self.source, self.arch).config if self.source is not None else None
        return pair_encoder(config or self._config())

    def default_label(self) -> str:
        """Return the name that it has at its origin, after `clip`."""
        named = (self.arch, self.pretrained) if self.source is None else (Path(self.source).stem,)
        return "-".join(part for part in (self.name, *named) if part)

    def _checkpoint(self) -> Checkpoint | None:
        from recipe_ray.base.loading import check_adapter

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
