"""Neurons of a PTM: where they are, what they put out, and how one is removed.

A neuron is one output of a layer that is followed by an activation function: a unit of a BERT's
intermediate dense layer, a channel of a convolution. Neurons are numbered layer by layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NeuronLayer:
    """The n neurons of one layer, as the parameters that feed them."""

    weight: nn.Parameter  # [n, ...] one row a neuron
    bias: nn.Parameter  # [n]
    # [n] each: scale and shift of a normalisation before the activation function, which would
    # leave a pruned neuron a constant
    further: tuple[nn.Parameter, ...] = ()

    @property
    def num_neurons(self) -> int:
        """Return n."""
        return len(self.bias)


@torch.no_grad()
def prune(layers: Sequence[NeuronLayer], numbers: Tensor) -> None:
    """Set everything that feeds the neurons with these numbers to zero."""
    first = 0
    for layer in layers:
        last = first + layer.num_neurons
        rows = numbers[(numbers >= first) & (numbers < last)] - first
        layer.weight[rows] = 0
        for vector in (layer.bias, *layer.further):
            vector[rows] = 0
        first = last


@contextmanager
def outputs_of(
    modules: Sequence[nn.Module], pick: Callable[[Tensor], Tensor]
) -> Iterator[dict[int, Tensor]]:
    """Collect `pick` of what each module last put out, by its place in `modules`.

    Only what is picked is held, so that a pass does not keep every state of every layer.
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
