"""Batch normalisation under the loop: its statistics train, resume, and agree across workers."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from stub_model import Pairs, Slot, StubBatches, squared
from torch import Tensor, nn

from recipe_ray.learn.loop import fit
from recipe_ray.learn.optim import FitSpec
from recipe_ray.learn.progress import Progress
from recipe_ray.learn.runtime import LocalRuntime

SPEC = FitSpec(epochs=2, learning_rate=0.05, precision="fp32")
STOP = 5


def normalised_stub() -> nn.Sequential:
    torch.manual_seed(0)
    parts = (nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 2))
    return nn.Sequential(*parts)


def trained(runtime: Any, spec: FitSpec = SPEC) -> dict[str, Tensor]:
    """Return the whole state after a training, running statistics among it."""
    module = normalised_stub()
    fit(module, squared, StubBatches(), spec, runtime, seed=3)
    assert not module.training
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def stop(progress: Progress) -> None:
    if progress.step == STOP:
        raise KeyboardInterrupt


def test_a_resumed_training_has_the_statistics_of_an_undisturbed_one() -> None:
    whole, slot = trained(LocalRuntime()), Slot()
    with pytest.raises(KeyboardInterrupt):
        trained(LocalRuntime(stop, slot, checkpoint_every_s=0))
    resumed = trained(LocalRuntime(checkpoints=slot))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole["1.num_batches_tracked"] == 8


def test_without_dropout_batch_normalisation_still_goes_by_the_batch() -> None:
    module = normalised_stub()
    seen: list[tuple[bool, bool]] = []

    def watched(module: Any, batch: Any) -> Any:
        seen.append((module[1].training, module[2].training))
        return squared(module, batch)

    fit(module, watched, StubBatches(), SPEC.revised(dropout=False), LocalRuntime(), seed=3)
    assert set(seen) == {(True, False)}
    start = normalised_stub()[1]
    assert module[1].num_batches_tracked == 8
    assert not torch.allclose(module[1].running_mean, start.running_mean)


@dataclass
class Worker(LocalRuntime):
    """One of two workers in threads, each with a model of its own; gradients are left apart."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    board: dict[int, Tensor] = field(default_factory=dict)

    def sum(self, values: Tensor) -> Tensor:
        self.board[self.rank] = values
        self.meeting.wait(60)
        total = torch.stack(list(self.board.values())).sum(0)
        self.meeting.wait(60)
        return total


class Shares(StubBatches):
    """Workers see unlike data, or their statistics could not disagree."""

    def epoch(
        self, epoch: int, rank: int, world_size: int, start: int, *, more: bool = False
    ) -> Iterator[Pairs]:
        for batch in super().epoch(epoch, rank, world_size, start):
            yield Pairs(batch.x[rank::2] * (rank + 1), batch.y[rank::2])


def test_all_workers_end_with_the_statistics_of_the_first() -> None:
    meeting, board = threading.Barrier(2), {}
    workers = [Worker(rank=r, world_size=2, meeting=meeting, board=board) for r in range(2)]
    modules = [normalised_stub() for _ in workers]
    before_the_end: dict[int, Tensor] = {}

    def train(rank: int) -> None:
        def keep(epoch: int) -> None:
            before_the_end[rank] = modules[rank][1].running_mean.clone()

        workers[rank].on_epoch = keep
        fit(modules[rank], squared, Shares(), SPEC, workers[rank], seed=3)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, range(2)))
    assert not torch.allclose(before_the_end[0], before_the_end[1])
    for module in modules:
        assert torch.equal(module[1].running_mean, before_the_end[0])
        assert module[1].num_batches_tracked == 8
