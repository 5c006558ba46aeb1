"""Two operations that torch does slowly on CPUs: dropout, and cross-entropy over a vocabulary.

Both are exact: they have the distribution and the gradients of torch's own, and are tested against
them.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# thresholds are 16 bits wide, so a dropout probability is exact to 1 / 65536
_LEVELS = 1 << 16
# rows of logits worked on at a time, so that they stay in a core's cache
_ROWS = 8


class Dropout(nn.Module):
    """Dropout whose mask is a function of torch's generator, with a fast generator behind it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` of any shape with a share `p` of its entries zeroed and the rest scaled up."""
        if not self.training or self.p == 0.0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        return x * keep_factors(x.shape, self.p, x.dtype)

    def extra_repr(self) -> str:
        """Return the text that torch prints between the parentheses."""
        return f"p={self.p}"


def use_fast_dropout(module: nn.Module) -> None:
    """Replace every `nn.Dropout` inside `module`."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Dropout):
                setattr(parent, name, Dropout(child.p))


def keep_factors(shape: torch.Size, p: float, dtype: torch.dtype) -> Tensor:
    """Return what dropout multiplies by on CPUs: 0 with probability p, else 1 / (1 - p)."""
    count = shape.numel()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw(-(-count // 4))
    bits = torch.from_numpy(words.view(np.int16))[:count].view(shape)
    threshold = round(p * _LEVELS) - _LEVELS // 2
    # a comparison into int16 is vectorised; one into bool, and a cast from bool, are not
    keep = torch.ge(bits, threshold, out=torch.empty_like(bits))
    if dtype == torch.bfloat16:
        factor = torch.tensor(1 / (1 - p), dtype=dtype).view(torch.int16)
        return keep.mul_(factor).view(dtype)
    return keep.to(dtype).mul_(1 / (1 - p))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> Tensor:
    """Return the summed cross-entropy of `hidden` [M, H] x `weight` [V, H] against targets [M]."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if device != "cpu":
        return F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, reduction="sum")
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, targets)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradient of the logits [M, V] is made in the forward pass, in place of the logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        logits = F.linear(hidden, weight, bias)
        loss = torch.zeros((), dtype=torch.float32)
        for start in range(0, len(targets), _ROWS):
            rows = slice(start, start + _ROWS)
            loss += _softmax_minus_target(logits[rows], targets[rows, None])
        ctx.save_for_backward(hidden, weight, logits)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, grad_logits = ctx.saved_tensors
        scale = grad_loss.to(hidden.dtype)
        wants_hidden, wants_weight, wants_bias, _ = ctx.needs_input_grad
        return (
            (grad_logits @ weight) * scale if wants_hidden else None,
            grad_logits.t() @ (hidden * scale) if wants_weight else None,
            grad_logits.sum(0) * scale if wants_bias else None,
            None,
        )


def _softmax_minus_target(logits: Tensor, targets: Tensor) -> Tensor:
    # logits [m, V] become the gradient of the loss returned, in place
    x = logits.float()
    x -= x.amax(1, keepdim=True)
    at_target = x.gather(1, targets)
    sums = x.exp_().sum(1, keepdim=True)
    x *= sums.reciprocal()
    x.scatter_add_(1, targets, torch.full_like(at_target, -1.0))
    logits.copy_(x)
    return (sums.log() - at_target).sum()
