"""Architectures of CLIP, by open_clip's names: a small one, open_clip's own, one in a file.

Only a plain ViT beside a plain text transformer with CLIP's own tokenizer: towers from timm or the
hub would bring further downloads and other losses.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Self

import torch
from pydantic import Field, PositiveInt, ValidationError, model_validator
from torch import nn

from recipe_ray.base.errors import ModelError, SpecError, unknown
from recipe_ray.base.spec import Spec, explain

VOCABULARY = 49408  # tokens of CLIP's tokenizer; the last one ends a caption
# what open_clip takes for what a config leaves out (`open_clip.model`, CLIPVisionCfg, CLIPTextCfg)
_LEFT_OUT: dict[str, dict[str, Any]] = {
    "vision_cfg": {
        "image_size": 224,
        "patch_size": 16,
        "width": 768,
        "layers": 12,
        "head_width": 64,
        "mlp_ratio": 4.0,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": VOCABULARY,
        "width": 512,
        "heads": 8,
        "layers": 12,
    },
}


class VisionTower(Spec):
    """A ViT; the defaults train on two cores."""

    image_size: PositiveInt = Field(64, description="pixels of a side")
    patch_size: PositiveInt = 8
    width: PositiveInt = 128
    layers: PositiveInt = 4
    head_width: PositiveInt = Field(32, description="there are width / head_width heads")
    mlp_ratio: float = Field(4.0, gt=0, description="neurons of fc1 are so many times the width")
    ls_init_value: float | None = Field(None, description="of layer scale; None: there is none")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.head_width:
            raise SpecError(f"width {self.width} is no multiple of head_width {self.head_width}")
        if self.image_size % self.patch_size:
            raise SpecError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        return self


class TextTower(Spec):
    """A text transformer; the defaults train on two cores."""

    context_length: PositiveInt = Field(32, description="tokens a caption is cut to")
    vocab_size: int = Field(VOCABULARY, ge=VOCABULARY, description="CLIP's tokenizer has 49408")
    width: PositiveInt = 128
    heads: PositiveInt = 4
    layers: PositiveInt = 3

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise SpecError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class ClipConfig(Spec):
    """Both towers, by the names of open_clip's config files."""

    embed_dim: PositiveInt = Field(128, description="width of what both towers put out")
    vision_cfg: VisionTower = VisionTower()
    text_cfg: TextTower = TextTower()
    quick_gelu: bool = Field(False, description="OpenAI's approximation of the activation function")

    def for_open_clip(self) -> dict[str, Any]:
        """Return it as open_clip's config files have it."""
        return self.model_dump(exclude_none=True)


def open_clip() -> Any:
    """Return the library; raise ModelError where it is not installed."""
    try:
        import open_clip as library
    except ImportError as error:
        raise ModelError(
            f"model 'clip' needs open_clip ({error}): pip install 'recipe-ray[vision]'"
        ) from error
    return library


def parse_config(values: Mapping[str, Any], where: str) -> ClipConfig:
    """Return what a config of open_clip says; raise SpecError, naming `where`, for other towers."""
    filled = _switched_on(values)
    for tower, defaults in _LEFT_OUT.items():
        given = filled.get(tower)
        if not isinstance(given, dict):
            raise SpecError(f"{where}: expected a {tower}, as in open_clip's config files")
        filled[tower] = {**defaults, **_switched_on(given)}
    try:
        return ClipConfig.model_validate(filled)
    except ValidationError as error:
        raise explain(error, where) from error


@cache
def architectures() -> dict[str, ClipConfig]:
    """Return every architecture of open_clip that is a plain ViT and text transformer, by name."""
    found = {}
    for name in open_clip().list_models():
        try:
            found[name] = parse_config(open_clip().get_model_config(name), name)
        except SpecError:
            continue
    return found


def architecture(name: str) -> ClipConfig:
    """Return an architecture of open_clip; raise ModelError for one unknown or not supported."""
    if name in architectures():
        return architectures()[name]
    if name in open_clip().list_models():
        raise ModelError(
            f"CLIP architecture {name!r} is not supported: it is no plain ViT with a plain text "
            f"transformer; allowed: {', '.join(sorted(architectures()))}"
        )
    raise ModelError(unknown("CLIP architecture", name, architectures()))


def build(config: ClipConfig, seed: int) -> nn.Module:
    """Return open_clip's module with random weights drawn by `seed`; nothing else is drawn from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = open_clip().CLIP(**config.for_open_clip())
    return module


def _switched_on(values: Mapping[str, Any]) -> dict[str, Any]:
    # configs also say what a tower has not: `custom_text: false`, `timm_model_name: null`
    return {n: value for n, value in values.items() if value is not None and value is not False}
