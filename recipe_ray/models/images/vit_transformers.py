"""ViTs in transformers' layout: query, key and value are a linear layer each.

Built from ViTConfig by its model_type, never by the checkpoint's code; tensors are read by our own
safe reader and only then handed to transformers, which knows the names of older releases.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from recipe_ray.base.errors import ModelError
from recipe_ray.base.loading import read_json, read_weights
from recipe_ray.models.images.origins import CONFIG
from recipe_ray.models.images.vision import IMAGENET, Means, Spreads
from recipe_ray.models.images.vit_network import Block

MODEL_TYPE = "vit"
PREPROCESSOR = "preprocessor_config.json"
Statistics = tuple[Means, Spreads]
_UNCHANGED: Statistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_BILINEAR = 2  # as PIL numbers it


@dataclass(frozen=True)
class TransformersNetwork:
    """A ViTForImageClassification and the normalisation that it is saved with."""

    statistics: Statistics

    def blocks(self, module: Any) -> list[Block]:
        """Return the encoder blocks."""
        return [
            Block(
                layer.mlp.fc1,
                layer.mlp.fc2,
                layer.mlp.activation_fn,
                layer.attention.q_proj.weight,
                layer.attention.k_proj.weight,
                layer.attention.v_proj.weight,
                layer.attention.o_proj,
            )
            for layer in module.vit.layers
        ]

    def states(self, module: Any, images: Tensor) -> Tensor:
        """Return the CLS states."""
        states: Tensor = module.vit(images).last_hidden_state[:, 0]
        return states

    def logits(self, module: Any, states: Tensor) -> Tensor:
        """Return what `classifier` says."""
        scores: Tensor = module.classifier(states)
        return scores

    def head(self, module: Any) -> nn.Module:
        """Return `classifier`."""
        head: nn.Module = module.classifier
        return head

    def replace_last(self, module: Any, linear: nn.Linear) -> None:
        """Replace `classifier`."""
        module.classifier = linear

    def save(self, module: Any, folder: Path) -> None:
        """Write config and weights by `save_pretrained`, and the preprocessor's settings."""
        module.save_pretrained(folder)
        size = module.config.image_size
        mean, std = self.statistics
        settings = {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": _BILINEAR,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(mean),
            "image_std": list(std),
        }
        (folder / PREPROCESSOR).write_text(json.dumps(settings, indent=2) + "\n")


def is_transformers_folder(folder: Path) -> bool:
    """Return whether a folder's config.json is transformers'; raise ModelError without one."""
    return "model_type" in read_json(folder / CONFIG)


def read_config(folder: Path) -> Any:
    """Return a folder's ViTConfig.

    Raises ModelError for another architecture, or images that are not square.
    """
    values = read_json(folder / CONFIG)
    kind = values.get("model_type")
    if kind != MODEL_TYPE:
        raise ModelError(f"{folder}: model_type {kind!r}; family vit reads {MODEL_TYPE!r}")
    config: Any = ViTConfig.from_dict(values)
    if not isinstance(config.image_size, int):
        raise ModelError(f"{folder}: image_size {config.image_size!r}; only squares are read")
    return config


def load_classifier(folder: Path, *, allow_pickle: bool = False) -> Any:
    """Return the ViTForImageClassification in a folder.

    Raises ModelError for another architecture, or weights that are missing or misshapen;
    UnsafeModelError for pickles without `allow_pickle`.
    """
    built: Any = ViTForImageClassification
    module, outcome = built.from_pretrained(
        None,
        config=read_config(folder),
        state_dict=read_weights(folder, allow_pickle=allow_pickle),
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
    )
    for problem in ("missing_keys", "mismatched_keys"):
        names = sorted(name if isinstance(name, str) else name[0] for name in outcome[problem])
        if names:
            what = problem.replace("_keys", "")
            raise ModelError(
                f"{folder}: weights {what}: {', '.join(names[:4])} (a ViT for image "
                "classification has all of them, its classifier as well)"
            )
    return module.float()


def statistics_of(folder: Path) -> Statistics:
    """Return the normalisation in preprocessor_config.json, or ImageNet's where there is none."""
    path = folder / PREPROCESSOR
    if not path.is_file():
        return IMAGENET
    values = read_json(path)
    if not values.get("do_normalize", True):
        return _UNCHANGED
    given = (values.get("image_mean", IMAGENET[0]), values.get("image_std", IMAGENET[1]))
    try:
        return TypeAdapter(Statistics).validate_python(given)
    except ValidationError as error:
        raise ModelError(
            f"{path}: image_mean and image_std must be three numbers each, the latter above 0; "
            f"got {given[0]!r} and {given[1]!r}"
        ) from error
