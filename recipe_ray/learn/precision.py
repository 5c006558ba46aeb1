"""Work done once instead of every step: frozen weights are cast to bf16 before a bf16 training.

Autocast casts an fp32 weight at every forward pass. For weights that train that is needed; for
frozen ones it is the same result each time, so they are cast once and put back afterwards.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def frozen_weights_cast(module: nn.Module, precision: str) -> Iterator[None]:
    """Hold the frozen weights of all linear layers in bf16 while the context lasts (bf16 only)."""
    kept: list[tuple[nn.Parameter, torch.Tensor]] = []
    if precision == "bf16":
        for parameter in _frozen_linear_parameters(module):
            kept.append((parameter, parameter.data))
            parameter.data = parameter.data.bfloat16()
    try:
        yield
    finally:
        for parameter, original in kept:
            parameter.data = original


def _frozen_linear_parameters(module: nn.Module) -> list[nn.Parameter]:
    # among them the decoder's, tied to the word embeddings: those are then looked up in bf16, no
    # coarser than the states they become, and summed and normalised in fp32
    found: dict[int, nn.Parameter] = {}
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            for parameter in layer.parameters(recurse=False):
                if not parameter.requires_grad:
                    found[id(parameter)] = parameter
    return list(found.values())
