"""Objectives: functions from (module, batch) to named loss terms, composed by `Weighted` sums.

A term keeps its sum and its count apart until every worker's count is known. So the loss is a mean
over the *global* batch, no matter how it was dealt out (a masked-LM loss: over masked tokens).

A weight matrix in a norm is a whole parameter, or some rows of a fused one: libraries that fuse
query, key and value keep one parameter [3H, H]; RECIPE's norm is over each part.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from recipe_ray.base.errors import SpecError


@dataclass(frozen=True, eq=False)
class WeightPart:
    """Rows `start` to `stop` of a parameter; `sharers` are the groups that share its rows."""

    parameter: nn.Parameter
    start: int
    stop: int
    sharers: tuple[str, ...]

    def tensor(self) -> Tensor:
        """Return the rows as they are now; gradients reach the parameter."""
        return self.parameter[self.start : self.stop]


Weight = nn.Parameter | WeightPart


def tensor_of(weight: Weight) -> Tensor:
    """Return a member of a weight group as a matrix."""
    return weight.tensor() if isinstance(weight, WeightPart) else weight


def whole_parameters(weights: Sequence[Weight]) -> list[nn.Parameter]:
    """Return the distinct parameters that the weights make up, to train only these.

    Raises SpecError if only some rows of one are among them: an optimiser moves it whole.
    """
    found: dict[int, nn.Parameter] = {}
    covered: dict[int, Tensor] = {}
    for weight in weights:
        if not isinstance(weight, WeightPart):
            found[id(weight)] = weight
            continue
        parameter = weight.parameter
        found[id(parameter)] = parameter
        rows = covered.setdefault(id(parameter), torch.zeros(len(parameter), dtype=torch.bool))
        rows[weight.start : weight.stop] = True
    for weight in weights:
        if isinstance(weight, WeightPart) and not bool(covered[id(weight.parameter)].all()):
            raise SpecError(
                f"in this model {', '.join(weight.sharers)} are rows of one matrix, so none of "
                "them can train alone: name all of them in `layers`, or let every parameter "
                "change (`trainable: all`, with a pre-training loss)"
            )
    return list(found.values())


class Batch(Protocol):
    """One worker's share of a global batch."""

    @property
    def num_samples(self) -> int:
        """Samples in this share."""
        ...

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on `device`."""
        ...


@dataclass(frozen=True)
class Term:
    """One summand of a loss.

    `total` is the scalar sum over this worker's elements and `count` their number; `count`
    None means a term that does not depend on data and is the same on every worker.
    """

    total: Tensor
    count: int | None = None
    weight: float = 1.0

    def weighted(self, factor: float) -> "Term":
        """Return the term with its weight multiplied."""
        return Term(self.total, self.count, factor * self.weight)


Terms = dict[str, Term]
Objective = Callable[[Any, Any], Terms]


def mean_squared(prediction: Tensor, target: Tensor) -> Term:
    """Return the mean squared error over all entries of two equally shaped tensors, as a term."""
    difference = prediction.float() - target.float()
    return Term(difference.square().sum(), difference.numel())


@dataclass(frozen=True)
class WeightNorms:
    """Sum of the unsquared Frobenius norms of chosen weight matrices (docs/method.md section 2).

    The released script applies `torch.norm` to each matrix and adds them up; biases stay out.
    """

    weights: Sequence[Weight]

    def __call__(self, module: Any, batch: Any) -> Terms:
        norms = [torch.linalg.vector_norm(tensor_of(weight).float()) for weight in self.weights]
        return {"norm": Term(torch.stack(norms).sum())}


@dataclass(frozen=True)
class Weighted:
    """A sum of objectives, each with a factor; a factor of zero leaves the objective out."""

    parts: Sequence[tuple[float, Objective]]

    def __call__(self, module: Any, batch: Any) -> Terms:
        terms: Terms = {}
        for factor, objective in self.parts:
            if factor == 0:
                continue
            for name, term in objective(module, batch).items():
                if name in terms:
                    raise ValueError(f"two loss terms are called {name!r}")
                terms[name] = term.weighted(factor)
        return terms


def classification(module: Any, batch: Any) -> Terms:
    """Return the cross-entropy of logits [B, C] against the batch's labels [B]."""
    loss = nn.functional.cross_entropy(module(batch).float(), batch.labels, reduction="sum")
    return {"cross_entropy": Term(loss, len(batch.labels))}
