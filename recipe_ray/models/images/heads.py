"""Classifiers for downstream tasks: a new last layer, on a PTM's features or in its own head."""

from typing import Any

import torch
from torch import Tensor, nn

from recipe_ray.data.images import ImageBatch


def fresh_linear(width: int, num_labels: int, seed: int) -> nn.Linear:
    """Return a linear layer drawn from a seed alone."""
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(width, num_labels)
    nn.init.normal_(linear.weight, std=width**-0.5, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear


class _Whole(nn.Module):
    """A classifier that trains with all its weights: nothing was left out."""

    def whole_state(self) -> dict[str, Tensor]:
        """Return all weights by name."""
        return {name: tensor.contiguous() for name, tensor in self.state_dict().items()}


class FeatureClassifier(_Whole):
    """A PTM's body with a linear layer on its features: batch -> logits [B, C].

    `body` is the part of the PTM's module that `features` needs, where that is not all of it.
    """

    def __init__(self, ptm: Any, num_labels: int, seed: int, body: nn.Module | None = None) -> None:
        super().__init__()
        self.body = ptm.module if body is None else body
        self._ptm = ptm
        self.linear = fresh_linear(ptm.feature_size, num_labels, seed)

    def forward(self, batch: ImageBatch) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.linear(self._ptm.features(self.body, batch))
        return logits


class HeadClassifier(_Whole):
    """A PTM whose head has been given other labels: batch -> logits [B, C]."""

    def __init__(self, ptm: Any) -> None:
        super().__init__()
        self.body = ptm.module
        self._ptm = ptm

    def forward(self, batch: ImageBatch) -> Tensor:
        """Return the logits."""
        logits: Tensor = self._ptm.logits(self.body, batch)
        return logits
