"""Weight matrices as members of a group: a whole parameter, or some rows of a fused one.

Libraries that fuse query, key and value keep one parameter [3H, H]; a norm is over each part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Return the distinct parameters that the weights make up, to train them and no others.

    Raises SpecError where only some rows of one are among them: an optimiser moves it whole.
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
