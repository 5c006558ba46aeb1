"""Neurons of a PTM: where they are, which of them a trigger activates, and how one is removed.

A neuron is one output of a layer that is followed by an activation function: a unit of a BERT's
intermediate dense layer, a channel of a convolution. Neurons are numbered layer by layer. One is
active if its activation is above zero. Activations are summed batch by batch and never held
(docs/method.md section 6).

Legend: B samples, N neurons.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_ALL = slice(None)


def least_active(activations: Tensor, count: int) -> Tensor:
    """Return the numbers of the `count` lowest of [N]; among equals the lower number goes first."""
    return torch.argsort(activations, stable=True)[:count]


@dataclass(frozen=True)
class Overlap:
    """Neurons active on clean and on poisoned samples (A), and all active on poisoned ones (B)."""

    both: int
    poisoned: int

    @property
    def value(self) -> float | None:
        """A / B; None if nothing is active on poisoned samples."""
        return self.both / self.poisoned if self.poisoned else None

    @property
    def only_poisoned(self) -> int:
        """Neurons that are active only on poisoned samples."""
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
    """Return the overlap; a neuron is active on a set if its mean over the samples is > 0."""
    clean, poisoned = sums[:2, neurons] > 0
    return Overlap(int((clean & poisoned).sum()), int(poisoned.sum()))


def overlap_of_samples(sums: Tensor, neurons: slice = _ALL) -> Overlap:
    """Return the overlap counted sample by sample and added up over all of them."""
    both, poisoned = sums[2:, neurons].sum(1).tolist()
    return Overlap(round(both), round(poisoned))


@dataclass(frozen=True)
class NeuronLayer:
    """The n neurons of one layer, as the parameters that feed them."""

    weight: nn.Parameter  # [n, ...] one row per neuron
    bias: nn.Parameter | None  # [n]
    # [n] each: scale and shift of a normalisation before the activation function, which would
    # leave a pruned neuron a constant
    further: tuple[nn.Parameter, ...] = ()

    @property
    def num_neurons(self) -> int:
        """Return n."""
        return len(self.weight)


@torch.no_grad()
def prune(layers: Sequence[NeuronLayer], numbers: Tensor) -> None:
    """Set all parameters that feed the neurons with these numbers to zero."""
    first = 0
    for layer in layers:
        last = first + layer.num_neurons
        rows = numbers[(numbers >= first) & (numbers < last)] - first
        layer.weight[rows] = 0
        for vector in (layer.bias, *layer.further):
            if vector is not None:
                vector[rows] = 0
        first = last


@contextmanager
def outputs_of(
    modules: Sequence[nn.Module], pick: Callable[[Tensor], Tensor]
) -> Iterator[dict[int, Tensor]]:
    """Collect `pick` of each module's last output, by its place in `modules`.

    Only the picked part is held, so that a pass does not keep every state of every layer.
    """
    seen: dict[int, Tensor] = {}

    def keep(place: int) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(module: nn.Module, given: object, output: Tensor) -> None:
            seen[place] = pick(output)

        return hook

    hooks = [module.register_forward_hook(keep(i)) for i, module in enumerate(modules)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
