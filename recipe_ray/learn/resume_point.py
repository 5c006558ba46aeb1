"""Whether a training can continue from a saved state; nothing is changed before that is certain.

The state may be of another version of this program, or of other weights: then it does not fit.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_FIELDS = {"phase", "step", "records", "sums", "parameters", "buffers", "optimizer"}
_LATER = {"elements"}  # a state of an earlier release lacks them
_RECORD = {"epoch", "step", "terms"}  # those of `loop.EpochRecord`


class MisfitError(ValueError):
    """A saved state does not belong to this training; the message says in which respect."""


def phase_of(saved: Any) -> str:
    """Return which phase of a stage a state is of; raise MisfitError if it does not say it."""
    fields = set(saved) if isinstance(saved, dict) else set()
    if fields - _LATER != _FIELDS or not isinstance(saved["phase"], str):
        raise MisfitError(f"it should have the fields {', '.join(sorted(_FIELDS))}")
    return str(saved["phase"])


def check_fits(
    saved: Mapping[str, Any],
    num_steps: int,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Raise MisfitError unless the state is of these tensors, this optimizer and these steps."""
    step = saved["step"]
    if not isinstance(step, int) or not 0 <= step <= num_steps:
        raise MisfitError(f"its step is {step!r}, of {num_steps}")
    _check_tensors("parameters", saved["parameters"], parameters)
    _check_tensors("buffers", saved["buffers"], buffers)
    _check_history(saved["records"], saved["sums"], saved.get("elements", {}))
    _check_optimizer(saved["optimizer"], optimizer)


def _check_tensors(what: str, saved: Any, own: Mapping[str, Tensor]) -> None:
    if not isinstance(saved, dict) or saved.keys() != own.keys():
        names = set(saved) ^ set(own) if isinstance(saved, dict) else set(own)
        raise MisfitError(f"its {what} differ: {', '.join(sorted(map(str, names))[:3])}")
    for name, tensor in own.items():
        found = saved[name]
        if not isinstance(found, Tensor) or found.shape != tensor.shape:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise MisfitError(f"its {name} is {shape}, the model's {list(tensor.shape)}")


def _check_history(records: Any, sums: Any, elements: Any) -> None:
    well_formed = (
        isinstance(records, list)
        and all(isinstance(record, dict) and record.keys() == _RECORD for record in records)
        and isinstance(sums, dict)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in sums.values())
        and isinstance(elements, dict)
        and all(isinstance(count, float) for count in elements.values())
    )
    if not well_formed:
        raise MisfitError("its record of losses is of another form")


def _check_optimizer(saved: Any, optimizer: torch.optim.Optimizer) -> None:
    own = optimizer.state_dict()["param_groups"]
    groups = saved.get("param_groups") if isinstance(saved, dict) else None
    state = saved.get("state") if isinstance(saved, dict) else None
    alike = isinstance(groups, list) and [_shape_of(group) for group in groups] == [
        _shape_of(group) for group in own
    ]
    if not alike:
        raise MisfitError("its optimizer is of another kind")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not isinstance(state, dict) or not set(state) <= set(range(len(parameters))):
        raise MisfitError("its optimizer is of other parameters")
    for index, values in state.items():
        for name, value in dict(values).items():
            allowed = (torch.Size(), parameters[index].shape)
            if isinstance(value, Tensor) and value.shape not in allowed:
                raise MisfitError(f"its optimizer's {name} is of shape {list(value.shape)}")


def _shape_of(group: Any) -> Any:
    return (sorted(group), group.get("params")) if isinstance(group, dict) else None
