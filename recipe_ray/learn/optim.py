"""How a loop optimises: the spec of one training, its optimiser and its schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from recipe_ray.base.limits import EPOCHS, LENGTH, SAMPLES, STEPS
from recipe_ray.base.spec import Spec

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class FitSpec(Spec):
    """One training: how long, how fast, how precise. Every field can change a number."""

    epochs: float = Field(1, ge=0, description="passes over the data; ignored when steps is given")
    steps: PositiveInt | None = Field(None, description="optimiser steps instead of epochs")
    batch_size: PositiveInt = Field(32, description="samples per step, summed over all workers")
    max_length: PositiveInt = Field(
        64, description="tokens a text is cut to, special ones included"
    )
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(2e-5, gt=0)
    epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD's momentum")
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["linear", "constant"] = Field("linear", description="linear: down to zero")
    warmup_share: float = Field(0.0, ge=0, lt=1, description="share of the steps that warm up")
    clip_norm: float | None = Field(1.0, gt=0, description="gradient norm is clipped to this")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="bf16: autocast, fp32 weights; fp32 on devices without bf16"
    )
    dropout: bool = True

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        EPOCHS.check(math.ceil(self.epochs), "epochs")
        STEPS.check(self.steps or 0, "steps")
        SAMPLES.check(self.batch_size, "batch_size")
        LENGTH.check(self.max_length, "max_length")
        return self

    def num_steps(self, steps_per_epoch: int) -> int:
        """Return the optimiser steps of the whole training; raise SpecError beyond the limit."""
        steps = self.steps or math.ceil(self.epochs * steps_per_epoch)
        STEPS.check(steps, f"epochs {self.epochs:g}")
        return steps


def build_optimizer(parameters: Iterable[nn.Parameter], spec: FitSpec) -> Optimizer:
    """Return the optimiser over the trainable ones of `parameters`.

    Weight decay spares vectors (biases, LayerNorm), as the usual fine-tuning recipes do.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trainable if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return _BUILDERS[spec.optimizer](groups, spec)


def rate_at(step: int, num_steps: int, spec: FitSpec) -> float:
    """Return the learning rate of step `step` (from 0) of `num_steps`."""
    warmup = round(spec.warmup_share * num_steps)
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    return spec.learning_rate * _SCHEDULES[spec.schedule](step - warmup, num_steps - warmup)


def _adamw(groups: list[dict[str, object]], spec: FitSpec) -> Optimizer:
    import torch

    return torch.optim.AdamW(groups, lr=spec.learning_rate, eps=spec.epsilon, fused=True)


def _sgd(groups: list[dict[str, object]], spec: FitSpec) -> Optimizer:
    import torch

    return torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum, fused=True)


_BUILDERS = {"adamw": _adamw, "sgd": _sgd}
_SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "linear": lambda step, steps: 1.0 - step / steps,
    "constant": lambda step, steps: 1.0,
}
