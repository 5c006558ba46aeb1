"""What activations of neurons say: which neurons are least active, and which only a trigger wakes.

Legend: B samples, N neurons. A neuron is active where its activation is above zero. Activations
are summed batch by batch and never held (docs/method.md section 6).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_ALL = slice(None)


def least_active(activations: Tensor, count: int) -> Tensor:
    """Return the numbers of the `count` lowest of [N]; among equals the lower number goes first."""
    return torch.argsort(activations, stable=True)[:count]


@dataclass(frozen=True)
class Overlap:
    """Neurons active on clean and poisoned samples (A), and on poisoned ones at all (B)."""

    both: int
    poisoned: int

    @property
    def value(self) -> float | None:
        """A / B; None where nothing is active on poisoned samples."""
        return self.both / self.poisoned if self.poisoned else None

    @property
    def only_poisoned(self) -> int:
        """Neurons that are active on poisoned samples alone."""
        return self.poisoned - self.both


def pair_sums(clean: Tensor, poisoned: Tensor) -> Tensor:
    """Return sums over samples [4, N], to be added up over batches and workers.

    `clean` and `poisoned` [B, N] are the activations of the same samples without and with a
    trigger. The rows: clean activations, poisoned ones, samples in which a neuron is active in
    both, samples in which it is active with the trigger.
    """
    on_poisoned = poisoned > 0
    both = (clean > 0) & on_poisoned
    rows = (clean, poisoned, both, on_poisoned)
    return torch.stack([row.sum(0, dtype=torch.float64) for row in rows])


def overlap_of_means(sums: Tensor, neurons: slice = _ALL) -> Overlap:
    """Return the overlap where a neuron is active on a set if its mean over the samples is > 0."""
    clean, poisoned = sums[:2, neurons] > 0
    return Overlap(int((clean & poisoned).sum()), int(poisoned.sum()))


def overlap_of_samples(sums: Tensor, neurons: slice = _ALL) -> Overlap:
    """Return the overlap counted sample by sample and added up over all of them."""
    both, poisoned = sums[2:, neurons].sum(1).tolist()
    return Overlap(round(both), round(poisoned))
