"""Running an encoder on packed batches: states, pooler output, and a classifier on top."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recipe_ray.data.rows import Ints
from recipe_ray.learn.kernels import Dropout
from recipe_ray.models.text.attention import Layout, layout, packed_attention, rows_of
from recipe_ray.models.text.packed import FILLER, PackedBatch


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
        """Drop the embeddings of all tokens but `ids`, the only ones it will be given from now on.

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

    No text is padded outside attention, and the last layer is worked out for no other tokens than
    asked for: a loss looks at the first or at the masked ones, mostly a seventh of a batch or less.
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
    # [K, H] -> [N, H]: transformers' layer, but only tokens `where` ask, add and feed forward
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
