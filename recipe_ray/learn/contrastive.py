"""The image-text contrastive loss of CLIP over the global batch, no matter how it was dealt out.

Every worker's pairs are compared with all pairs of all workers, so that the loss and its gradient
are those of one process with the whole batch.

Legend: n pairs of this worker, M rows of all workers, N distinct pairs among them, E width.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from recipe_ray.learn.objective import Term

MAX_LOGIT_SCALE = math.log(100)  # of the logarithm, as CLIP has it (Radford et al. 2021, 2.5)


def contrastive(images: Tensor, texts: Tensor, logit_scale: Tensor, index: Tensor | None) -> Term:
    """Return the symmetric InfoNCE of pairs with features [n, E] each, a sum over this worker's.

    `logit_scale` is the logarithm of 1 / temperature. `index` [n] numbers the pairs, so that one
    dealt to two workers counts once and is not its own negative; None: all are distinct. While
    gradients are recorded, every worker of the process group must call this in the same step;
    without them (evaluation) a worker is alone with its batch.
    """
    # under bf16 logits of up to 100 would be rounded to steps of a half
    with torch.autocast(images.device.type, enabled=False):
        pairs = torch.cat([F.normalize(part.float(), dim=-1) for part in (images, texts)], dim=1)
        if _alone():
            every, own = pairs, torch.arange(len(pairs), device=pairs.device)
        else:
            every, own = _of_all_workers(pairs, index)
        every_image, every_text = every.chunk(2, dim=1)
        scale = _in_range(logit_scale).exp()
        to_text = scale * every_image[own] @ every_text.T
        to_image = scale * every_text[own] @ every_image.T
        losses = [F.cross_entropy(logits, own, reduction="sum") for logits in (to_text, to_image)]
        return Term((losses[0] + losses[1]) / 2, len(own))


def _alone() -> bool:
    together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    # an evaluation deals out batches in any way: workers need not be in step
    return not together or not torch.is_grad_enabled()


def _in_range(logit_scale: Tensor) -> Tensor:
    """Return the parameter within [0, ln 100].

    CLIP puts it back after every optimiser step. Here it is put back before every step's loss. It
    is the same, except after the last step of a training. Beyond the limit a mere clamp of
    the value would have no gradient to come back by.
    """
    if torch.is_grad_enabled() and isinstance(logit_scale, nn.Parameter):
        with torch.no_grad():
            logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        return logit_scale  # at the limit, rounded up, another clamp would end its gradient
    return logit_scale.clamp(0, MAX_LOGIT_SCALE)


def _of_all_workers(pairs: Tensor, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the distinct pairs of all workers [N, 2E], and which of them this worker counts."""
    sizes = _sizes(pairs)
    rows = _AllRows.apply(pairs, sizes)  # [M, 2E]
    start = sum(sizes[: dist.get_rank()])
    here = torch.arange(start, start + len(pairs), device=pairs.device)
    if index is None:
        return rows, here
    firsts = _firsts(_gathered(index, sizes))
    own = torch.isin(firsts, here).nonzero().squeeze(1)
    return rows[firsts], own


def _sizes(rows: Tensor) -> list[int]:
    own = torch.tensor([len(rows)], device=rows.device)
    sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, own)
    return [int(size) for size in sizes]


def _gathered(rows: Tensor, sizes: list[int]) -> Tensor:
    """Return the rows of all workers, `sizes` each, in the order of their ranks."""
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))  # all must send the same shape
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _firsts(numbers: Tensor) -> Tensor:
    """Return the first place of each distinct number of [M], ascending [N]."""
    _, place = torch.unique(numbers, return_inverse=True)
    found = torch.full_like(numbers, len(numbers))
    found.scatter_reduce_(0, place, torch.arange(len(numbers), device=numbers.device), "amin")
    return found[found < len(numbers)].sort().values


class _AllRows(torch.autograd.Function):
    """Rows of all workers; backwards, the gradient of all workers' losses for this worker's rows.

    `torch.distributed.nn.all_gather` does so for equal shares, and is deprecated in torch 2.14.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int]) -> Tensor:
        start = sum(sizes[: dist.get_rank()])
        ctx.own = slice(start, start + len(rows))
        return _gathered(rows, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed[ctx.own], None
