"""ViTs in transformers' layout: query, key and value are one linear layer each.

They are built from ViTConfig by its model_type, never by the checkpoint's code. Our own safe reader
reads the tensors. Only then are they given to transformers, which knows the names of older
releases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from recipe_ray.base.errors import ModelError
from recipe_ray.base.foreign import is_there
from recipe_ray.models.vision.vision import IMAGENET, Means, Spreads
from recipe_ray.models.vision.vit_network import Block
from recipe_ray.models.vision.weight_source import CONFIG

if TYPE_CHECKING:
    from torch import Tensor, nn

MODEL_TYPE = "vit"
PREPROCESSOR = "preprocessor_config.json"
Statistics = tuple[Means, Spreads]
_UNCHANGED: Statistics = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
_BILINEAR = 2  # as PIL numbers it
_COLOURS = 3
# now and in older releases, and those of a ViT without the classifier
_LAYERS = ("vit.layers.", "vit.encoder.layer.", "layers.", "encoder.layer.")
_ATTENTION = "sdpa"  # transformers' own choice if nothing else is chosen


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

    def layers(self, module: Any) -> list[nn.Module]:
        """Return the encoder's layers."""
        return list(module.vit.layers)

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
    from recipe_ray.base.loading import read_json

    return "model_type" in read_json(folder / CONFIG)


def read_config(folder: Path) -> Any:
    """Return a folder's ViTConfig.

    Raises ModelError for another architecture, images that are not square and coloured, or a field
    that makes no sense.
    """
    from recipe_ray.base.loading import read_json

    return _config(read_json(folder / CONFIG), folder)


def load_classifier(
    folder: Path, *, allow_pickle: bool = False, ignore_adapter: bool = False
) -> Any:
    """Return the ViTForImageClassification in a folder.

    Raises ModelError for another architecture, or weights that are missing or misshapen;
    UnsafeModelError for pickles without `allow_pickle`.
    """
    from transformers import ViTForImageClassification

    from recipe_ray.base.loading import read_json, read_weights
    from recipe_ray.models.config_fields import explained_by, rounded

    values = read_json(folder / CONFIG)
    config = _config(values, folder)
    read = read_weights(folder, allow_pickle=allow_pickle, ignore_adapter=ignore_adapter)
    weights = rounded(read, values)
    _set_labels(config, values, weights, folder / CONFIG)
    _check_sizes(config, weights, folder)
    built: Any = ViTForImageClassification
    with explained_by(folder, "transformers cannot load its weights"):
        module, outcome = built.from_pretrained(
            None,
            config=config,
            state_dict=weights,
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
    known = [name for name in weights if name not in outcome["unexpected_keys"]]
    if len(known) > len(module.state_dict()):
        raise ModelError(
            f"{folder}: {len(known)} weights for the {len(module.state_dict())} of a ViT: some "
            "are there under both an older and a newer name; keep one of them"
        )
    return module.float()


def statistics_of(folder: Path) -> Statistics:
    """Return the normalisation in preprocessor_config.json, or ImageNet's if there is none."""
    from recipe_ray.base.loading import read_json

    path = folder / PREPROCESSOR
    if not is_there(path):
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


def _config(values: Mapping[str, Any], folder: Path) -> Any:
    from transformers import ViTConfig

    from recipe_ray.models.config_fields import config_of

    kind, where = values.get("model_type"), folder / CONFIG
    if kind != MODEL_TYPE:
        raise ModelError(f"{folder}: model_type {kind!r}; family vit reads {MODEL_TYPE!r}")
    config: Any = config_of(ViTConfig, values, where, attention=_ATTENTION)
    size, patch = config.image_size, config.patch_size
    if not isinstance(size, int):
        raise ModelError(f"{folder}: image_size {size!r}; only squares are read")
    if not all(0 < side <= size for side in (patch if isinstance(patch, list) else [patch])):
        raise ModelError(f"{where}: patch_size is {patch}; allowed: 1 to image_size, {size}")
    if config.num_channels != _COLOURS:
        raise ModelError(f"{where}: num_channels is {config.num_channels}; allowed: {_COLOURS}")
    return config


def _set_labels(
    config: Any, values: Mapping[str, Any], weights: Mapping[str, Tensor], where: Path
) -> None:
    """Take over the labels' names, or their number if the classifier has as many outputs."""
    names, count = values.get("id2label"), values.get("num_labels")
    if names is not None:
        if not _are_labels(names):
            raise ModelError(
                f"{where}: id2label is {shortened(names)}; allowed: names by numbers from 0"
            )
        config.id2label = {int(number): name for number, name in names.items()}
        config.label2id = {name: number for number, name in config.id2label.items()}
    elif count is not None:
        outputs = len(weights.get("classifier.weight", ()))
        if count != outputs:
            raise ModelError(
                f"{where}: num_labels is {shortened(count)}, its classifier has {outputs} outputs"
            )
        config.num_labels = outputs


def _are_labels(names: Any) -> bool:
    if not isinstance(names, dict) or not names:
        return False
    numbered = names.keys() == {str(number) for number in range(len(names))}
    return numbered and all(isinstance(name, str) for name in names.values())


def _check_sizes(config: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Raise ModelError for more than is in the weights; transformers would make it, then compare.

    It knows the names in older releases, so the comparison of shapes is left to it.
    """
    from transformers import ViTForImageClassification

    from recipe_ray.base.loading import check_floats
    from recipe_ray.models.config_fields import check_depth, outline

    where = folder / CONFIG
    for name, tensor in weights.items():
        check_floats(name, tensor, folder)
    check_depth(config.num_hidden_layers, weights, _LAYERS, where)
    module: Any = outline(lambda: ViTForImageClassification(config), where)
    asked = sum(parameter.numel() for parameter in module.parameters())
    given = sum(tensor.numel() for tensor in weights.values())
    if asked > 2 * given:
        name, largest = max(module.named_parameters(), key=lambda pair: pair[1].numel())
        raise ModelError(
            f"{where}: it asks for {asked} numbers ({name} has shape {list(largest.shape)}), and "
            f"the weights have {given}"
        )
