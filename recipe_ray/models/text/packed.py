"""Texts packed end to end: hardly any padding in a matrix product, attention within each text.

If a batch of 32 sentences is padded to 64 tokens, three quarters of the work are wasted. Here the
T tokens of B texts run through the linear layers as one sequence [1, T]. Only attention sees texts,
padded within groups of similar length. Legend: B texts, T tokens, L longest, A heads, D head width,
M masked tokens.
"""

from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recipe_ray.data.rows import Ints, TokenRows

# Texts are sorted by length before packing. Those of a group are padded to the same multiple of
# this, which bounds the padding and keeps softmax on whole vector registers.
MULTIPLE = 16
# T is rounded up to a multiple of this by one text of filler, to which no token attends:
# oneDNN builds and keeps code for every new shape (8 % slower, 450 MB more without the filler)
ROUND_TO = 64
FILLER = 0  # its token id, and its position, which every model has


@dataclass(frozen=True)
class Group:
    """Neighbouring texts attended to together: tokens [start, stop), padded to [B, L]."""

    start: int
    stop: int
    padded: Tensor  # [B, L] index into the group's tokens, 0 if padded
    valid: Tensor  # [B, L] bool
    flat: Tensor  # [stop - start] index of each token in the padded [B * L]
    full: bool  # nothing is padded

    def to(self, device: torch.device) -> "Group":
        """Return the group with its tensors on `device`."""
        padded, valid, flat = (
            t.to(device, non_blocking=True) for t in (self.padded, self.valid, self.flat)
        )
        return Group(self.start, self.stop, padded, valid, flat, self.full)


@dataclass(frozen=True)
class PackedBatch:
    """B texts as one sequence; optional targets for what the batch is for."""

    tokens: Tensor  # [T + filler]
    positions: Tensor  # [T + filler], from 0 in each text; FILLER in the filler
    first: Tensor  # [B] index of each text's first token
    groups: tuple[Group, ...]
    num_samples: int
    num_tokens: int  # T
    where: Tensor | None = None  # [M] masked tokens, indices into T
    targets: Tensor | None = None  # [M] their true ids
    labels: Tensor | None = None  # [B] class labels
    triggers: Tensor | None = None  # [B] number of the trigger planted in a text, or -1

    def to(self, device: torch.device) -> "PackedBatch":
        """Return the batch with its tensors on `device`."""
        if device.type == "cpu":
            return self
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True)
            for name, value in tensors.items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved, groups=tuple(group.to(device) for group in self.groups))

    def groups_at(self, where: Tensor) -> tuple[Group, ...]:
        """Return the groups of the tokens `where` [N], ascending: the same texts, fewer tokens."""
        text = torch.searchsorted(self.first, where, right=True) - 1
        texts = [len(group.valid) for group in self.groups]
        counts = torch.bincount(text, minlength=sum(texts))
        groups: list[Group] = []
        start = 0
        for sizes in torch.split(counts, texts):
            lengths = sizes.tolist()
            groups.append(_group(start, lengths, max(lengths)))
            start = groups[-1].stop
        return tuple(groups)

    def with_targets(self, where: Ints, targets: Ints) -> "PackedBatch":
        """Return the batch with a masked-LM loss at `where` [M] for `targets` [M]."""
        return replace(self, where=torch.from_numpy(where), targets=torch.from_numpy(targets))

    def unmasked(self) -> "PackedBatch":
        """Return the texts as they were before masking; a batch without targets is returned."""
        if self.where is None or self.targets is None:
            return self
        tokens = self.tokens.index_copy(0, self.where, self.targets)
        return replace(self, tokens=tokens, where=None, targets=None)


def pack(rows: TokenRows) -> PackedBatch:
    """Pack rows as they come (sort them by length first for compact attention)."""
    columns = {name: torch.from_numpy(values) for name, values in rows.columns.items()}
    filler = -len(rows.tokens) % ROUND_TO
    lengths = [*rows.lengths.tolist(), *([filler] if filler else [])]
    return PackedBatch(
        tokens=_filled(rows.tokens, filler),
        positions=_filled(rows.positions, filler),
        first=torch.from_numpy(rows.offsets[:-1].copy()),
        groups=_groups(lengths),
        num_samples=len(rows),
        num_tokens=len(rows.tokens),
        labels=columns.get("label"),
        triggers=columns.get("trigger"),
    )


def _filled(values: Ints, filler: int) -> Tensor:
    return torch.from_numpy(np.pad(values, (0, filler), constant_values=FILLER))


def _groups(lengths: list[int]) -> tuple[Group, ...]:
    groups: list[Group] = []
    start = 0
    for longest, members in groupby(lengths, lambda length: -(-length // MULTIPLE) * MULTIPLE):
        groups.append(_group(start, list(members), longest))
        start = groups[-1].stop
    return tuple(groups)


def _group(start: int, lengths: list[int], longest: int) -> Group:
    sizes = torch.tensor(lengths)
    steps = torch.arange(longest)
    valid = steps < sizes[:, None]
    begins = torch.cumsum(sizes, 0) - sizes
    padded = torch.where(valid, begins[:, None] + steps, 0)
    flat = torch.nonzero(valid.flatten())[:, 0]
    return Group(start, start + sum(lengths), padded, valid, flat, min(lengths) == longest)
