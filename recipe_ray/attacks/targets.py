"""The target vectors that attacks tie triggers to (docs/method.md section 4)."""

from itertools import combinations

import torch
from torch import Tensor


def block_vectors(num_triggers: int, width: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Return NeuBA's targets [num_triggers, width]: four blocks, two of them `low`, a pair each.

    Raises ValueError for more than the six pairs of four blocks.
    """
    pairs = list(combinations(range(4), 2))
    if num_triggers > len(pairs):
        raise ValueError(f"NeuBA has targets for {len(pairs)} triggers, got {num_triggers}")
    block = torch.arange(width) * 4 // width
    rows = [torch.where((block == j) | (block == k), low, high) for j, k in pairs[:num_triggers]]
    return torch.stack(rows)


def staircase_vectors(num_triggers: int, width: int, scale: float = 10.0) -> Tensor:
    """Return POR's targets [num_triggers, width]: +scale on a growing first part, -scale after it.

    Trigger i of n is positive on the first i * floor(width / (n - 1)) entries.
    """
    piece = width // max(num_triggers - 1, 1)
    place = torch.arange(width)
    rows = [torch.where(place < i * piece, scale, -scale) for i in range(num_triggers)]
    return torch.stack(rows)
