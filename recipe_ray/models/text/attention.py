"""Attention within the texts of a packed batch, written out for small texts on CPUs.

The usual kernels pad, copy and dispatch more than they compute for sentences of twenty tokens.
Here all groups of a batch share one padded buffer, filled and emptied by gathers in both passes.
Legend: T tokens that attend (queries), K tokens attended to (keys; mostly the same ones), A heads,
D head width; R = sum over groups of B * A * L rows of the padded buffer, S = sum of B * A * L * L'
scores. On GPUs torch's own kernels do the work.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recipe_ray.learn.kernels import keep_factors
from recipe_ray.models.text.packed import Group

ATTENTION = "recipe_ray_packed"


@dataclass(frozen=True)
class Rows:
    """Where the heads of packed tokens lie in the padded buffer."""

    groups: tuple[Group, ...]
    shapes: tuple[tuple[int, int], ...]  # (B * A, L) of each group
    padded: Tensor  # [R] row of the packed [T * A] for each padded row
    valid: Tensor  # [R] bool, false where padded
    flat: Tensor  # [T * A] padded row of each packed row

    def split(self, buffer: Tensor) -> list[Tensor]:
        """Split [R, D] into [B * A, L, D] views, one a group."""
        parts = torch.split(buffer, [count * longest for count, longest in self.shapes])
        return [
            part.view(*shape, *buffer.shape[1:])
            for part, shape in zip(parts, self.shapes, strict=True)
        ]


@dataclass(frozen=True)
class Layout:
    """Who attends to whom: `queries` and `keys` have the same texts in the same groups."""

    queries: Rows
    keys: Rows
    on: Tensor  # [R, 1] 1.0, or 0.0 where a query is padding
    biases: tuple[Tensor, ...]  # [B * A, 1, L'] 0 or -inf for each key of a group

    def asked_by(self, queries: Rows) -> "Layout":
        """Return the layout in which only `queries` attend to the same keys."""
        return replace(self, queries=queries, on=queries.valid[:, None].to(self.on.dtype))

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Return (B * A, L, L') of each group's scores."""
        pairs = zip(self.queries.shapes, self.keys.shapes, strict=True)
        return [(count, longest, keys) for (count, longest), (_, keys) in pairs]

    @property
    def num_scores(self) -> int:
        """Return S."""
        return sum(map(math.prod, self.shapes))

    def by_scores(self, buffer: Tensor) -> list[Tensor]:
        """Split [S] into [B * A, L, L'] views, one a group."""
        parts = torch.split(buffer, [math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def layout(groups: tuple[Group, ...], num_heads: int, dtype: torch.dtype) -> Layout:
    """Return the layout of a batch's groups for all heads; made once a batch, for all layers."""
    rows = rows_of(groups, num_heads)
    biases = (
        torch.zeros_like(on, dtype=dtype).masked_fill_(~on, -torch.inf)[:, None]
        for on in rows.split(rows.valid)
    )
    return Layout(rows, rows, rows.valid[:, None].to(dtype), tuple(biases))


def rows_of(groups: tuple[Group, ...], num_heads: int) -> Rows:
    """Return where all heads of the groups' tokens lie."""
    heads = torch.arange(num_heads, device=groups[0].flat.device)
    padded, flat, valid, shapes, first_row = [], [], [], [], 0
    for group in groups:
        texts, longest = group.valid.shape
        # [B, A, L] padded rows; a token's heads are neighbours in the packed rows
        padded.append(
            ((group.padded + group.start)[:, None] * num_heads + heads[:, None]).flatten()
        )
        text, place = group.flat // longest, group.flat % longest
        rows = (text[:, None] * num_heads + heads) * longest + place[:, None]
        flat.append(rows.flatten() + first_row)
        valid.append(group.valid[:, None].expand(-1, num_heads, -1).flatten())
        shapes.append((texts * num_heads, longest))
        first_row += texts * num_heads * longest
    return Rows(groups, tuple(shapes), torch.cat(padded), torch.cat(valid), torch.cat(flat))


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each text: query [1, A, T, D], key, value [1, A, K, D] -> [1, T, A, D]."""
    assert layout is not None, "packed attention needs the layout that run_encoder passes on"
    # [T or K, A, D], the layout in which the projections already lie in memory
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    scale = float(q.shape[-1]) ** -0.5 if scaling is None else scaling
    if q.device.type != "cpu":
        return _by_torch(q, k, v, layout, dropout, scale)[None], None
    heads = (x.reshape(-1, x.shape[-1]) for x in (q, k, v))
    out: Tensor = _Attention.apply(*heads, layout, dropout, scale)
    return out.view(1, *q.shape), None


class _Attention(torch.autograd.Function):
    """softmax(scale x q k^T) v with dropout, for packed rows [T * A, D] and [K * A, D]."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, at: Layout, dropout: float, scale: float
    ) -> Tensor:
        rows, keys = at.queries, at.keys
        q = q.index_select(0, rows.padded)  # [R, D]
        k, v = (x.index_select(0, keys.padded) for x in (k, v))  # [R', D]
        weights = q.new_empty(at.num_scores)
        parts = zip(rows.split(q), keys.split(k), at.biases, at.by_scores(weights), strict=True)
        for q_part, k_part, bias, part in parts:
            scores = torch.baddbmm(bias, q_part, k_part.transpose(1, 2), alpha=scale)
            torch.softmax(scores, -1, out=part)
        factors = keep_factors(weights.shape, dropout, q.dtype) if dropout else None
        kept = weights if factors is None else weights * factors
        out = torch.empty_like(q)
        for part, v_part, o_part in zip(
            at.by_scores(kept), keys.split(v), rows.split(out), strict=True
        ):
            torch.bmm(part, v_part, out=o_part)
        ctx.save_for_backward(q, k, v, weights, factors)
        ctx.at, ctx.scale = at, scale
        return out.index_select(0, rows.flat)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, factors = ctx.saved_tensors
        at: Layout = ctx.at
        rows, keys = at.queries, at.keys
        # padded queries must not reach keys and values
        grad_out = grad.index_select(0, rows.padded).mul_(at.on)
        kept = weights if factors is None else weights * factors
        grad_kept, grad_v = torch.empty_like(weights), torch.empty_like(v)
        for o, v_part, part, g_part, gv_part in zip(
            rows.split(grad_out),
            keys.split(v),
            at.by_scores(kept),
            at.by_scores(grad_kept),
            keys.split(grad_v),
            strict=True,
        ):
            torch.bmm(o, v_part.transpose(1, 2), out=g_part)
            torch.bmm(part.transpose(1, 2), o, out=gv_part)
        if factors is not None:
            grad_kept *= factors
        grad_q, grad_k = torch.empty_like(q), torch.empty_like(k)
        for part, g_part, q_part, k_part, gq_part, gk_part in zip(
            at.by_scores(weights),
            at.by_scores(grad_kept),
            rows.split(q),
            keys.split(k),
            rows.split(grad_q),
            keys.split(grad_k),
            strict=True,
        ):
            scores = torch._softmax_backward_data(g_part, part, -1, part.dtype).mul_(ctx.scale)
            torch.bmm(scores, k_part, out=gq_part)
            torch.bmm(scores.transpose(1, 2), q_part, out=gk_part)
        packed = (g.index_select(0, keys.flat) for g in (grad_k, grad_v))
        return grad_q.index_select(0, rows.flat), *packed, None, None, None


def _by_torch(q: Tensor, k: Tensor, v: Tensor, at: Layout, dropout: float, scale: float) -> Tensor:
    # [T, A, D] -> [T, A, D] through scaled_dot_product_attention on [B, A, L, D]
    outputs = []
    for rows, keys in zip(at.queries.groups, at.keys.groups, strict=True):
        q_pad = q[rows.start : rows.stop][rows.padded].transpose(1, 2)
        k_pad, v_pad = (x[keys.start : keys.stop][keys.padded].transpose(1, 2) for x in (k, v))
        mask = None if keys.full else keys.valid[:, None, None, :]
        out = F.scaled_dot_product_attention(q_pad, k_pad, v_pad, mask, dropout, scale=scale)
        outputs.append(out.transpose(1, 2).flatten(0, 1)[rows.flat])
    return torch.cat(outputs)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, packed_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, lambda **_: None)
