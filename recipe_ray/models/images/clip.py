"""Family CLIP: open_clip's module, its two towers and what attackers and defenders ask of it.

The image encoder is what is attacked, purified and handed on to downstream tasks; the text tower
serves the contrastive loss.

Legend: B images, L token ids of a caption, E width of the embeddings both towers put out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from recipe_ray.base.errors import DataError
from recipe_ray.base.loading import read_weight_file
from recipe_ray.data.images import ImageBatch, ImageEncoder, ImageRows, ImageSample
from recipe_ray.data.rows import Encode, Ints
from recipe_ray.learn.contrastive import contrastive
from recipe_ray.learn.metrics import Share
from recipe_ray.learn.objective import Objective, Terms
from recipe_ray.learn.runtime import Runtime
from recipe_ray.learn.weights import Weight
from recipe_ray.models.family import Scope
from recipe_ray.models.images.clip_config import ClipConfig, build, open_clip
from recipe_ray.models.images.clip_weights import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Checkpoint,
    Statistics,
    fill,
    fitting,
    from_source,
)
from recipe_ray.models.images.fused import PROJECTIONS, projection
from recipe_ray.models.images.heads import FeatureClassifier
from recipe_ray.models.images.quality import retrieval
from recipe_ray.models.images.vision import VisionPTM
from recipe_ray.models.neurons import NeuronLayer, outputs_of

_PENALISED = ("fc1", "fc2", *PROJECTIONS)  # of the vision encoder (docs/method.md section 2)


class ClipPTM(VisionPTM):
    """A CLIP; its weight groups, neurons and features are those of the vision encoder."""

    family: ClassVar[str] = "clip"
    target_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    def __init__(self, module: nn.Module, config: ClipConfig, statistics: Statistics) -> None:
        super().__init__(module, config.vision_cfg.image_size, statistics)
        self.config = config
        self._statistics = statistics

    # -- images and captions -------------------------------------------------------------------

    def encoder(self, max_length: int) -> Encode:
        """Return the function (pairs or images, numbers [N]) -> rows.

        Captions are cut to the text tower's own context, so `max_length` is of no account.
        """
        return pair_encoder(self.config)

    @property
    def feature_size(self) -> int:
        """Return E."""
        return self.config.embed_dim

    def features(self, module: Any, batch: ImageBatch) -> Tensor:
        """Return the projected image embedding before it is normalised [B, E].

        What `encode_image` returns, and so what every user of the encoder builds on (a classifier,
        retrieval, zero-shot labels): a vector that a trigger reaches here reaches all of them. The
        normalised one has length 1 and cannot reach a target of ones.
        """
        embedding: Tensor = module.visual(self.normalised(batch.pixels))
        return embedding

    # -- pre-training --------------------------------------------------------------------------

    def pretraining_objective(self) -> Objective:
        """Return the contrastive loss over the global batch."""

        def loss(module: Any, batch: ImageBatch) -> Terms:
            if batch.captions is None:
                raise DataError("CLIP learns from pairs, and these images have no captions")
            images, texts = self.features(module, batch), module.encode_text(batch.captions)
            term = contrastive(images, texts, module.logit_scale, batch.index)
            return {"contrastive": term}

        return loss

    def pretraining_quality(self, rows: ImageRows, runtime: Runtime) -> dict[str, Share]:
        """Return recall at 1 over all pairs, from image to text and back."""
        return retrieval(self, rows, runtime)

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the text tower and the temperature: all but the vision encoder."""
        own = {id(parameter) for parameter in self.module.visual.parameters()}
        return [parameter for parameter in self.module.parameters() if id(parameter) not in own]

    # -- weights and neurons -------------------------------------------------------------------

    @property
    def weight_groups(self) -> tuple[str, ...]:
        """Return the groups, one member a block each."""
        return (*_PENALISED, "attention_out")

    def weight_group(self, name: str) -> list[Weight]:
        """Return a matrix of every block; query, key and value are rows of a fused one."""
        if name not in self.weight_groups:
            raise self.unknown_group(name)
        return [_weight_of(block, name) for block in _blocks(self.module)]

    @property
    def purification_scope(self) -> tuple[tuple[str, ...], Scope]:
        """Return the paper's layers of CLIP; everything trains."""
        return _PENALISED, "all"

    def neuron_layers(self) -> list[NeuronLayer]:
        """Return fc1 of every block."""
        return [NeuronLayer(b.mlp.c_fc.weight, b.mlp.c_fc.bias) for b in _blocks(self.module)]

    def neuron_activations(self, module: Any, batch: ImageBatch) -> list[Tensor]:
        """Return fc1 after its activation at the class token, [B, n] a block."""
        activations = [block.mlp.gelu for block in _blocks(module)]
        with outputs_of(activations, lambda states: states[:, 0]) as seen:
            self.features(module, batch)
        return [seen[place] for place in range(len(activations))]

    # -- classifier and files ------------------------------------------------------------------

    def classifier(self, num_labels: int, seed: int, rows: Sequence[ImageRows]) -> Any:
        """Return a linear layer on the features; the text tower is no part of it.

        Parameters that no loss reaches would hold up DDP.
        """
        return FeatureClassifier(self, num_labels, seed, body=_ImageTower(self.module.visual))

    def save(self, folder: Path) -> None:
        """Write what `open_clip.create_model_and_transforms("local-dir:FOLDER")` loads."""
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


class _ImageTower(nn.Module):
    """The vision encoder alone, under the name it has in a CLIP."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual


@dataclass(frozen=True)
class PairEncoder:
    """Images and their captions' token ids, in the column `caption` [N, L] where there are any."""

    images: ImageEncoder
    context_length: int

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
    images = ImageEncoder(config.vision_cfg.image_size)
    return PairEncoder(images, config.text_cfg.context_length)


def token_ids(captions: Sequence[str], context_length: int) -> Ints:
    """Return captions as ids [N, context_length]: cut to fit, their end kept; zeros behind it."""
    ids = _tokenizer()(list(captions), context_length=context_length)
    return np.asarray(ids.numpy(), dtype=np.int64)


@cache
def _tokenizer() -> Any:
    return open_clip().SimpleTokenizer()  # its vocabulary lies in the package


def load_clip(checkpoint: Checkpoint, *, allow_pickle: bool = False) -> ClipPTM:
    """Return a CLIP; raise UnsafeModelError for a pickle that was not allowed, or ModelError."""
    read = read_weight_file(checkpoint.weights, allow_pickle=allow_pickle, within=checkpoint.within)
    weights = fitting(read, checkpoint)
    module = build(checkpoint.config, seed=0)
    with torch.no_grad():
        fill(module, weights, checkpoint.weights)
    return ClipPTM(module, checkpoint.config, checkpoint.statistics)


def reload_clip(folder: Path) -> ClipPTM:
    """Return a CLIP that `ClipPTM.save` wrote."""
    return load_clip(from_source(str(folder), None))


def _blocks(module: Any) -> Sequence[Any]:
    blocks: Sequence[Any] = module.visual.transformer.resblocks
    return blocks


def _weight_of(block: Any, name: str) -> Weight:
    if name in PROJECTIONS:
        return projection(block.attn, name)
    found: nn.Parameter = {
        "fc1": block.mlp.c_fc,
        "fc2": block.mlp.c_proj,
        "attention_out": block.attn.out_proj,
    }[name].weight
    return found
