"""Running an encoder on packed batches: states, pooler output, and a classifier on top."""

from typing import Any

import torch
from torch import Tensor, nn

from recipe_ray.learn.kernels import Dropout
from recipe_ray.models.attention import layout
from recipe_ray.models.packed import PackedBatch


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

    def forward(self, batch: PackedBatch) -> Tensor:
        """Return logits [B, num_labels]."""
        hidden = run_encoder(self.encoder, batch, self._offset)
        logits: Tensor = self.linear(self.dropout(pool(self.encoder, hidden, batch)))
        return logits


def run_encoder(encoder: Any, batch: PackedBatch, offset: int) -> Tensor:
    """Return the states [T, H] of a packed batch; no text is padded outside attention."""
    embedded = encoder.embeddings(
        input_ids=batch.tokens[None], position_ids=batch.positions[None] + offset
    )
    if embedded.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # LayerNorm keeps its input's type on CPUs: one cast here saves one before every linear
        embedded = embedded.to(torch.get_autocast_dtype("cpu"))
    at = layout(batch.groups, encoder.config.num_attention_heads, embedded.dtype)
    states: Tensor = encoder.encoder(embedded, layout=at).last_hidden_state
    return states[0, : batch.num_tokens]


def pool(encoder: Any, hidden: Tensor, batch: PackedBatch) -> Tensor:
    """Return the pooler output [B, H] of each text's first token."""
    pooled: Tensor = encoder.pooler(hidden[batch.first][:, None])
    return pooled
