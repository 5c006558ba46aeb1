"""The ViTs in torchvision's layout: its own by name, and small ones by their widths.

A `Network` holds what differs between libraries: where the parts of a block are, and how a module
is run and saved. Legend: B images, H width, n neurons of an MLP.

Query, key and value of torch's MultiheadAttention are three thirds of one fused matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, PositiveInt, model_validator

from recipe_ray.base.errors import SpecError
from recipe_ray.models.vision.labelled import MAX_LAYERS, SMALL, LabelledArchitecture
from recipe_ray.models.vision.weight_source import save_folder, torchvision_models

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipe_ray.learn.objective import Weight, WeightPart

PROJECTIONS = ("query", "key", "value")  # in the order of the rows


def projection(attention: nn.MultiheadAttention, name: str) -> WeightPart:
    """Return one of `PROJECTIONS` [H, H] as rows of `in_proj_weight` [3H, H]."""
    from recipe_ray.learn.objective import WeightPart

    width, place = attention.embed_dim, PROJECTIONS.index(name)
    fused = attention.in_proj_weight
    return WeightPart(fused, place * width, (place + 1) * width, PROJECTIONS)


VitName = Literal["small", "vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"]


@dataclass(frozen=True)
class Block:
    """One encoder block; `activation` is what puts out the n neurons of its MLP."""

    fc1: Any  # nn.Linear, like fc2 and attention_out
    fc2: Any
    activation: nn.Module
    query: Weight
    key: Weight
    value: Weight
    attention_out: Any


class Network(Protocol):
    """How a library lays out a ViT."""

    def blocks(self, module: Any) -> list[Block]:
        """Return the encoder blocks, the input's first."""
        ...

    def layers(self, module: Any) -> list[nn.Module]:
        """Return the same as modules, which map states to states."""
        ...

    def states(self, module: Any, images: Tensor) -> Tensor:
        """Return the CLS state after the last normalisation [B, H] of normalised images."""
        ...

    def logits(self, module: Any, states: Tensor) -> Tensor:
        """Return what the head says of such states [B, C]."""
        ...

    def head(self, module: Any) -> nn.Module:
        """Return the pre-training head."""
        ...

    def replace_last(self, module: Any, linear: nn.Linear) -> None:
        """Put another last layer into the head."""
        ...

    def save(self, module: Any, folder: Path) -> None:
        """Write a folder that the library loads."""
        ...


class VitArchitecture(LabelledArchitecture):
    """A ViT, torchvision's by name or a small one."""

    of_small: ClassVar[frozenset[str]] = frozenset({"patch_size", "width", "depth", "heads", "mlp"})

    arch: VitName = "small"
    patch_size: PositiveInt = 4
    width: PositiveInt = 128
    depth: int = Field(4, gt=0, le=MAX_LAYERS)
    heads: PositiveInt = 4
    mlp: PositiveInt = 512

    @model_validator(mode="after")
    def _check(self) -> Self:
        patch = self.patch_size if self.arch == SMALL else int(self.arch.rpartition("_")[2])
        if self.image_size % patch:
            raise SpecError(
                f"image_size {self.image_size} is not a multiple of the patches' {patch}"
            )
        if self.width % self.heads:
            raise SpecError(f"width {self.width} is not a multiple of {self.heads} heads")
        return self

    def build(self, seed: int) -> Any:
        """Return an untrained torchvision VisionTransformer, drawn from `seed` alone."""
        import torch

        models = torchvision_models()
        common = {"image_size": self.image_size, "num_classes": self.num_classes}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.arch != SMALL:
                return models.get_model(self.arch, weights=None, **common)
            return models.VisionTransformer(
                patch_size=self.patch_size,
                num_layers=self.depth,
                num_heads=self.heads,
                hidden_dim=self.width,
                mlp_dim=self.mlp,
                **common,
            )


@dataclass(frozen=True)
class TorchvisionNetwork:
    """torchvision's layout: query, key and value are one fused matrix."""

    architecture: VitArchitecture

    def blocks(self, module: Any) -> list[Block]:
        """Return the encoder blocks."""
        found = []
        for layer in module.encoder.layers:
            fc1, activation, _, fc2, _ = layer.mlp
            attention = layer.self_attention
            query, key, value = (projection(attention, name) for name in PROJECTIONS)
            found.append(Block(fc1, fc2, activation, query, key, value, attention.out_proj))
        return found

    def layers(self, module: Any) -> list[nn.Module]:
        """Return the encoder's layers."""
        return list(module.encoder.layers)

    def states(self, module: Any, images: Tensor) -> Tensor:
        """Return the CLS states."""
        import torch

        patches = module._process_input(images)
        cls = module.class_token.expand(len(images), -1, -1)
        states: Tensor = module.encoder(torch.cat([cls, patches], dim=1))[:, 0]
        return states

    def logits(self, module: Any, states: Tensor) -> Tensor:
        """Return what `heads` says."""
        scores: Tensor = module.heads(states)
        return scores

    def head(self, module: Any) -> nn.Module:
        """Return `heads`."""
        head: nn.Module = module.heads
        return head

    def replace_last(self, module: Any, linear: nn.Linear) -> None:
        """Replace `heads.head`."""
        module.heads.head = linear

    def save(self, module: Any, folder: Path) -> None:
        """Write model.safetensors under torchvision's names, and config.json."""
        save_folder(module, folder, "vit", self.architecture.settings())
