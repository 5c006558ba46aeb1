"""Running an encoder on packed batches: attention within each text, states, pooler, classifier.

For sentences of twenty tokens the usual attention kernels pad, copy and dispatch more than they
compute. Here all groups of a batch share one padded buffer, filled and emptied by gathers in both
passes. On GPUs torch's own kernels do the work.

Legend: T tokens that attend (queries), K tokens attended to (keys; mostly the same ones), A heads,
D head width; R = sum over groups of B * A * L rows of the padded buffer, S = sum of B * A * L * L'
scores.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from recipe_ray.data.rows import Ints
from recipe_ray.learn.kernels import Dropout, keep_factors
from recipe_ray.models.text.packed import FILLER, Group, PackedBatch

ATTENTION = "recipe_ray_packed"


@dataclass(frozen=True)
class Rows:
    """The places of the heads of packed tokens in the padded buffer."""

    groups: tuple[Group, ...]
    shapes: tuple[tuple[int, int], ...]  # (B * A, L) of each group
    padded: Tensor  # [R] row of the packed [T * A] for each padded row
    valid: Tensor  # [R] bool, false if padded
    flat: Tensor  # [T * A] padded row of each packed row

    def split(self, buffer: Tensor) -> list[Tensor]:
        """Split [R, D] into [B * A, L, D] views, one per group."""
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
    on: Tensor  # [R, 1] 1.0, or 0.0 if a query is padding
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
        """Split [S] into [B * A, L, L'] views, one per group."""
        parts = torch.split(buffer, [math.prod(shape) for shape in self.shapes])
        return [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]


def layout(groups: tuple[Group, ...], num_heads: int, dtype: torch.dtype) -> Layout:
    """Return the layout of a batch's groups for all heads; made once per batch, for all layers."""
    rows = rows_of(groups, num_heads)
    biases = (
        torch.zeros_like(on, dtype=dtype).masked_fill_(~on, -torch.inf)[:, None]
        for on in rows.split(rows.valid)
    )
    return Layout(rows, rows, rows.valid[:, None].to(dtype), tuple(biases))


def rows_of(groups: tuple[Group, ...], num_heads: int) -> Rows:
    """Return the places of all heads of the groups' tokens."""
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


class PooledClassifier(nn.Module):
    """Encoder, pooler, dropout, linear: one head for both families (docs/method.md section 5)."""

    def __init__(self, encoder: Any, num_labels: int, offset: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self._offset = offset
        dropout = getattr(encoder.config, "classifier_dropout", None)
        self.dropout = Dropout(encoder.config.hidden_dropout_prob if dropout is None else dropout)
        self.linear = nn.Linear(encoder.config.hidden_size, num_labels)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(
            self.linear.weight, std=encoder.config.initializer_range, generator=generator
        )
        nn.init.zeros_(self.linear.bias)
        self._place: Tensor | None = None  # [V] a token's row among the embeddings that are kept
        self._all: Tensor | None = None  # [V, H] the embeddings before

    def keep_tokens(self, ids: Ints) -> None:
        """Drop the embeddings of all tokens except `ids`, the only ones that it gets from now on.

        The others get no gradient and would not move, so nothing else changes; but AdamW and the
        clipping would go through all of them at every step (a sixth of the time for MiniLM).
        """
        old: nn.Embedding = self.encoder.embeddings.word_embeddings
        kept = torch.from_numpy(np.union1d(ids, FILLER))
        place = torch.full((old.num_embeddings,), -1)
        place[kept] = torch.arange(len(kept))
        padding = int(place[old.padding_idx]) if old.padding_idx is not None else -1
        fewer = nn.Embedding(
            len(kept), old.embedding_dim, padding_idx=padding if padding >= 0 else None
        )
        with torch.no_grad():
            fewer.weight.copy_(old.weight[kept])
        self._place, self._all = place, old.weight.detach()
        self.encoder.embeddings.word_embeddings = fewer

    def whole_state(self) -> dict[str, Tensor]:
        """Return the state with the embeddings of every token."""
        state = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        if self._place is not None and self._all is not None:
            name = "encoder.embeddings.word_embeddings.weight"
            known = self._place >= 0
            whole = self._all.clone()
            whole[known] = state[name].cpu()[self._place[known]]
            state[name] = whole
        return state

    def forward(self, batch: PackedBatch) -> Tensor:
        """Return logits [B, num_labels]."""
        if self._place is not None:
            self._place = self._place.to(batch.tokens.device)
            # a token that was not kept is an index error here; the filler of a batch is always kept
            batch = replace(batch, tokens=self._place[batch.tokens])
        first = run_encoder(self.encoder, batch, self._offset, batch.first)
        logits: Tensor = self.linear(self.dropout(pool(self.encoder, first)))
        return logits


def run_encoder(
    encoder: Any, batch: PackedBatch, offset: int, where: Tensor | None = None
) -> Tensor:
    """Return the states [T, H] of a packed batch, or only those of its tokens `where` [N].

    No text is padded outside attention, and the last layer is computed only for the tokens
    asked for: a loss uses the first or the masked ones, mostly a seventh of a batch or less.
    """
    embedded = encoder.embeddings(
        input_ids=batch.tokens[None], position_ids=batch.positions[None] + offset
    )
    if embedded.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # LayerNorm keeps its input's type on CPUs: one cast here saves one before every linear
        embedded = embedded.to(torch.get_autocast_dtype("cpu"))
    num_heads = encoder.config.num_attention_heads
    at = layout(batch.groups, num_heads, embedded.dtype)
    *before, last = encoder.encoder.layer
    states: Tensor = embedded
    for layer in before:
        states = layer(states, layout=at)
    if where is None or embedded.device.type != "cpu":
        # laying out a GPU's batch for some of its tokens would make the host wait at every step
        every: Tensor = last(states, layout=at)[0, : batch.num_tokens]
        return every if where is None else every[where]
    ascending, order = torch.sort(where)
    queries = rows_of(batch.groups_at(ascending), num_heads)
    found = _layer_at(last, states[0], ascending, at.asked_by(queries))
    return torch.empty_like(found).index_copy(0, order, found)


def _layer_at(layer: Any, states: Tensor, where: Tensor, at: Layout) -> Tensor:
    # [K, H] -> [N, H]: transformers' layer, computed only for the tokens `where`
    own = layer.attention.self
    asking, heads = states[where], (own.num_attention_heads, own.attention_head_size)
    query, key, value = (
        linear(x).view(1, len(x), *heads).transpose(1, 2)
        for linear, x in ((own.query, asking), (own.key, states), (own.value, states))
    )
    dropout = own.dropout.p if own.training else 0.0
    context, _ = packed_attention(own, query, key, value, None, dropout, own.scaling, at)
    attended = layer.attention.output(context.reshape(asking.shape), asking)
    found: Tensor = layer.feed_forward_chunk(attended)
    return found


def pool(encoder: Any, first: Tensor) -> Tensor:
    """Return the pooler output [B, H] for the states [B, H] of each text's first token."""
    pooled: Tensor = encoder.pooler(first[:, None])
    return pooled
