"""Classifiers for downstream tasks made by putting a new last layer into a PTM's own head."""

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


class HeadClassifier(nn.Module):
    """A PTM whose head has been given other labels: batch -> logits [B, C]."""

    def __init__(self, ptm: Any) -> None:
        super().__init__()
        self.body = ptm.module
        self._ptm = ptm

    def forward(self, batch: ImageBatch) -> Tensor:
        """Return the logits."""
        logits: Tensor = self._ptm.logits(self.body, batch)
        return logits

    def whole_state(self) -> dict[str, Tensor]:
        """Return all weights by name."""
        return {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
