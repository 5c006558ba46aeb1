"""A model of twenty numbers, its batches and a checkpoint slot in memory, to try the loop on."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from recipe_ray.learn.objective import Terms, mean_squared

STEPS_PER_EPOCH = 4


@dataclass(frozen=True)
class Pairs:
    """A batch of the stub: inputs [B, 3] and what is to come out [B, 2]."""

    x: Tensor
    y: Tensor

    @property
    def num_samples(self) -> int:
        return len(self.x)

    def to(self, device: torch.device) -> "Pairs":
        return self


class StubBatches:
    """Four batches an epoch, other ones in each."""

    steps_per_epoch = STEPS_PER_EPOCH

    def epoch(
        self, epoch: int, rank: int, world_size: int, start: int, *, more: bool = False
    ) -> Iterator[Pairs]:
        for step in range(start, STEPS_PER_EPOCH):
            generator = torch.Generator().manual_seed(100 * epoch + step)
            x = torch.randn(6, 3, generator=generator)
            yield Pairs(x, x[:, :2] * 2)


def stub() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 2))


def squared(module: Any, batch: Pairs) -> Terms:
    return {"mse": mean_squared(module(batch.x), batch.y)}


@dataclass
class Slot:
    """A checkpoint slot in memory, written as bytes like the store's."""

    data: bytes | None = None
    saves: int = 0
    dropped: list[str] = field(default_factory=list)

    def load(self) -> dict[str, Any] | None:
        return None if self.data is None else torch.load(io.BytesIO(self.data), weights_only=True)

    def save(self, state: dict[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.data, self.saves = buffer.getvalue(), self.saves + 1

    def drop(self, reason: str) -> None:
        self.data, self.dropped = None, [*self.dropped, reason]
