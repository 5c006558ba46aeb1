"""The arithmetic of a forward pass: bf16 if it was asked for and the device has it, else fp32.

Autocast casts an fp32 weight at every forward pass. Weights that train need that. A frozen weight
gives the same result each time, so frozen weights are cast to bf16 once before a bf16 training, and
put back afterwards.
"""

import contextlib
import platform
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import nn


def arithmetic(device: torch.device, precision: str) -> str:
    """Return the precision that the device uses for a forward pass in this one.

    Emulated bf16 takes 40 times as long as fp32 (measured on a CPU with only AVX2), and
    is less exact: then fp32 is used.
    """
    return "bf16" if precision == "bf16" and _has_bf16(device.type) else "fp32"


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a forward pass runs: bf16 autocast, or nothing for fp32."""
    enabled = arithmetic(device, precision) == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@cache
def _has_bf16(device: str) -> bool:
    untyped: Any = torch
    if device == "cuda":
        return bool(untyped.cuda.is_bf16_supported(including_emulation=False))
    if platform.machine() in ("x86_64", "AMD64"):
        return bool(untyped.cpu._is_avx512_bf16_supported() or untyped.cpu._is_amx_tile_supported())
    try:
        return bool(untyped.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # a torch without oneDNN
        return False


@contextlib.contextmanager
def frozen_weights_cast(module: nn.Module, device: torch.device, precision: str) -> Iterator[None]:
    """Hold the frozen weights of all linear layers in bf16 while the context lasts (bf16 only)."""
    kept: list[tuple[nn.Parameter, torch.Tensor]] = []
    if arithmetic(device, precision) == "bf16":
        for parameter in _frozen_linear_parameters(module):
            kept.append((parameter, parameter.data))
            parameter.data = parameter.data.bfloat16()
    try:
        yield
    finally:
        for parameter, original in kept:
            parameter.data = original


def _frozen_linear_parameters(module: nn.Module) -> list[nn.Parameter]:
    # among them the decoder's, tied to the word embeddings: these are then looked up in bf16, not
    # coarser than the states they become, and summed and normalised in fp32
    found: dict[int, nn.Parameter] = {}
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            for parameter in layer.parameters(recurse=False):
                if not parameter.requires_grad:
                    found[id(parameter)] = parameter
    return list(found.values())
