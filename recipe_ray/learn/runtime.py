"""Where a loop runs: rank, world size, device, reduction, progress, checkpoints.

The loop asks its runtime and nothing else, so the same loop serves one process without Ray (tests,
`recipe-ray debug`), a Ray Tune trial, and DDP workers under Ray Train or plain torch.distributed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from recipe_ray.learn.progress import Progress

M = TypeVar("M", bound=nn.Module)


class Checkpoints(Protocol):
    """A slot that keeps the latest state of an interrupted stage."""

    def load(self) -> dict[str, Any] | None:
        """Return the latest state, or None when there is none."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Replace the state, atomically."""
        ...

    def drop(self, reason: str) -> None:
        """Delete the state, which cannot be resumed from, and say why."""
        ...


class Runtime(Protocol):
    """What a loop may ask of the place in which it runs."""

    rank: int
    world_size: int
    device: torch.device
    checkpoint_every_s: float

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module whose forward and backward keep the workers in step."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over all workers."""
        ...

    def report(self, progress: Progress) -> None:
        """Tell how far the stage is; cheap, called at every step."""
        ...

    def epoch_ended(self, epoch: int) -> None:
        """Tell that epoch `epoch` (from 1) of a training is over; on every worker."""
        ...

    def telling(self, on_epoch: Callable[[int], None]) -> "Runtime":
        """Return the same runtime, which calls `on_epoch` in place of what it called before."""
        ...

    def without_checkpoints(self) -> "Runtime":
        """Return the same runtime without a slot: it neither resumes nor keeps a state."""
        ...

    @property
    def checkpoints(self) -> Checkpoints | None:
        """The slot of this stage, or None if nothing is to be kept."""
        ...


def pick_device() -> torch.device:
    """Return the GPU this process may use, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else CPU


CPU = torch.device("cpu")


@dataclass
class _Runtime:
    """What the runtimes have in common: observers, the slot of resume points, the device."""

    on_progress: Callable[[Progress], None] | None = None
    checkpoints: Checkpoints | None = None
    checkpoint_every_s: float = 60.0
    device: torch.device = field(default_factory=pick_device)
    on_epoch: Callable[[int], None] | None = None

    def epoch_ended(self, epoch: int) -> None:
        if self.on_epoch is not None:
            self.on_epoch(epoch)

    def telling(self, on_epoch: Callable[[int], None]) -> Self:
        return replace(self, on_epoch=on_epoch)

    def without_checkpoints(self) -> Self:
        return replace(self, checkpoints=None)


@dataclass
class LocalRuntime(_Runtime):
    """One process, no communication."""

    rank: int = 0
    world_size: int = 1

    def wrap(self, module: M) -> M:
        return module

    def sum(self, values: Tensor) -> Tensor:
        return values

    def report(self, progress: Progress) -> None:
        if self.on_progress is not None:
            self.on_progress(progress)


@dataclass
class ProcessGroupRuntime(_Runtime):
    """One of several DDP workers; Ray Train or a test initialised torch.distributed."""

    def __post_init__(self) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        devices = [self.device] if self.device.type == "cuda" else None
        # buckets become views of the gradients: one copy of each gradient less per step
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values

    def report(self, progress: Progress) -> None:
        if self.on_progress is not None and self.rank == 0:
            self.on_progress(progress)
