"""Self-distillation: a PTM in training is held at its own states before the training.

The teacher is the PTM as it was given, frozen. It shares every parameter that does not train, so it
costs the memory of those that do, and one forward pass without gradients per step. A family says
what its states are (`PTM.states`): of texts those of all tokens, of images the features.

Legend: R rows (tokens, or images), H width, L layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from recipe_ray.learn.objective import Term, Terms

Layers = Literal["last", "all"]


def frozen_copy(module: nn.Module) -> Any:
    """Return the module as it is now, for evaluation; what does not train is shared with it.

    Batch normalisation uses the batch there as it does in a training (`learn/loop.py`), and leaves
    its running statistics as they are.
    """
    shared: dict[int, Any] = {id(p): p for p in module.parameters() if not p.requires_grad}
    frozen = copy.deepcopy(module, shared).eval().requires_grad_(requires_grad=False)
    for part in frozen.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.train()
            part.momentum = 0.0
    return frozen


def reached_by_states(ptm: Any) -> list[nn.Parameter]:
    """Return the parameters that a PTM's states depend on: all without its pre-training head."""
    head = {id(parameter) for parameter in ptm.head_parameters()}
    return [one for one in ptm.module.parameters() if id(one) not in head]


def relative_error(states: Sequence[Tensor], wanted: Sequence[Tensor]) -> Term:
    """Return the mean of ||state - wanted||^2 / ||wanted||^2 over rows and layers, as a term.

    Each layer has rows [R, H] and counts the same, however many it has.
    """
    num_rows = len(wanted[-1])
    layers = [
        _relative(own, other).sum() * (num_rows / max(len(other), 1))
        for own, other in zip(states, wanted, strict=True)
    ]
    return Term(torch.stack(layers).sum(), num_rows * len(layers))


def _relative(states: Tensor, wanted: Tensor) -> Tensor:
    # under bf16 the difference of near states would be rounded away
    own, other = states.float(), wanted.float()
    size = other.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (own - other).square().sum(-1) / size


@dataclass(frozen=True)
class SelfDistillation:
    """The relative error of the PTM's states of a batch against the teacher's."""

    ptm: Any
    teacher: Any
    layers: Layers

    def __call__(self, module: Any, batch: Any) -> Terms:
        with torch.no_grad():
            wanted = self.ptm.states(self.teacher, batch, self.layers)
        return {"distillation": relative_error(self.ptm.states(module, batch, self.layers), wanted)}
