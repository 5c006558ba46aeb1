"""The loop on a stub model: resume, schedule, clipping, frozen weights, losses over all workers."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from samples import SENTENCES, changed, encoded, parameters_of, tiny_ptm
from stub_model import Pairs, Slot, StubBatches, squared, stub
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from recipe_ray.base.errors import NonFiniteLossError
from recipe_ray.data.batches import MemoryBatches
from recipe_ray.learn.loop import EpochRecord, fit
from recipe_ray.learn.objective import Term, Terms, Weighted, WeightNorms, mean_squared
from recipe_ray.learn.optim import FitSpec, rate_at
from recipe_ray.learn.progress import Progress
from recipe_ray.learn.runtime import LocalRuntime

SPEC = FitSpec(epochs=2.5, learning_rate=0.05, precision="fp32")


@dataclass
class StopAfter:
    """Raises once a step is done, as a killed worker would stop."""

    step: int

    def __call__(self, progress: Progress) -> None:
        if progress.step == self.step:
            raise KeyboardInterrupt


def trained(runtime: LocalRuntime, spec: FitSpec = SPEC, **how: Any) -> tuple[Any, Any]:
    module = stub()
    records = fit(module, squared, StubBatches(), spec, runtime, seed=3, **how)
    return parameters_of(module), records


@pytest.mark.parametrize("stopped_after", [1, 3, 4, 5, 9])
def test_a_stopped_training_ends_where_an_undisturbed_one_does(stopped_after: int) -> None:
    whole, records = trained(LocalRuntime())
    slot = Slot()
    with pytest.raises(KeyboardInterrupt):
        trained(LocalRuntime(StopAfter(stopped_after), slot, checkpoint_every_s=0))
    seen: list[int] = []
    resumed, again = trained(LocalRuntime(lambda p: seen.append(p.step), slot))
    assert seen[0] == stopped_after  # the last step's checkpoint had been taken before it
    assert seen[-1] == 10
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert again == records
    assert [(r.epoch, r.step) for r in records] == [(1, 4), (2, 8), (3, 10)]


def test_a_checkpoint_of_another_phase_is_left_alone() -> None:
    slot = Slot()
    with pytest.raises(KeyboardInterrupt):
        trained(LocalRuntime(StopAfter(3), slot, checkpoint_every_s=0), phase="pretrain")
    first: list[int] = []
    trained(LocalRuntime(lambda p: first.append(p.step), slot), phase="purify")
    assert first[0] == 1


def _without_a_weight(state: dict[str, Any]) -> None:
    del state["parameters"]["0.weight"]


def _with_another_shape(state: dict[str, Any]) -> None:
    state["parameters"]["0.weight"] = torch.zeros(8, 4)


def _with_a_weight_that_is_none(state: dict[str, Any]) -> None:
    state["parameters"]["0.weight"] = "eight by three"


def _beyond_the_end(state: dict[str, Any]) -> None:
    state["step"] = 11


def _without_a_field(state: dict[str, Any]) -> None:
    del state["sums"]


def _with_other_records(state: dict[str, Any]) -> None:
    state["records"] = [{"epoch": 1}]


def _with_other_elements(state: dict[str, Any]) -> None:
    state["elements"] = [3]


def _of_another_optimizer(state: dict[str, Any]) -> None:
    state["optimizer"] = torch.optim.Adagrad([nn.Parameter(torch.zeros(2))]).state_dict()


def _with_other_moments(state: dict[str, Any]) -> None:
    for values in state["optimizer"]["state"].values():
        values.update({name: torch.zeros(5) for name in values if name != "step"})


def _with_more_moments(state: dict[str, Any]) -> None:
    state["optimizer"]["state"][99] = {"exp_avg": torch.zeros(2)}


@pytest.mark.parametrize(
    "change",
    [
        _without_a_weight,
        _with_another_shape,
        _with_a_weight_that_is_none,
        _beyond_the_end,
        _without_a_field,
        _with_other_records,
        _with_other_elements,
        _of_another_optimizer,
        _with_other_moments,
        _with_more_moments,
    ],
)
def test_a_checkpoint_of_something_else_is_dropped_and_changes_nothing(
    change: Callable[[dict[str, Any]], None],
) -> None:
    (whole, records), slot = trained(LocalRuntime()), Slot()
    with pytest.raises(KeyboardInterrupt):
        trained(LocalRuntime(StopAfter(7), slot, checkpoint_every_s=0))
    state = slot.load()
    assert state is not None
    change(state)
    slot.save(state)
    weights, again = trained(LocalRuntime(checkpoints=slot))
    (reason,) = slot.dropped
    assert reason
    assert slot.data is None
    assert all(torch.equal(whole[name], weights[name]) for name in whole)
    assert again == records


def test_checkpoints_are_no_more_frequent_than_asked() -> None:
    often, seldom = Slot(), Slot()
    trained(LocalRuntime(checkpoints=often, checkpoint_every_s=0))
    trained(LocalRuntime(checkpoints=seldom, checkpoint_every_s=3600))
    assert (often.saves, seldom.saves) == (10, 0)


def test_a_loss_that_is_no_number_stops_with_its_step_and_terms() -> None:
    def breaks(module: Any, batch: Pairs) -> Terms:
        terms = {"mse": mean_squared(module(batch.x), batch.y), "other": Term(batch.x.sum(), 1)}
        if module.calls == 5:
            terms["mse"] = Term(terms["mse"].total * float("nan"), 12)
        module.calls += 1
        return terms

    module: Any = stub()
    module.calls = 0
    with pytest.raises(NonFiniteLossError, match=r"poison.* step 5.* mse = nan, other = -?\d"):
        fit(module, breaks, StubBatches(), SPEC, LocalRuntime(), seed=0, phase="poison")
    assert all(p.isfinite().all() for p in module.parameters())


def test_the_linear_schedule_is_transformers_own_and_ends_at_zero() -> None:
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.05)
    scheduler = get_linear_schedule_with_warmup(optimizer, 0, 10)
    for step in range(10):
        assert rate_at(step, 10, SPEC) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rate_at(10, 10, SPEC) == 0


def test_warmup_rises_to_the_rate_and_a_constant_schedule_stays() -> None:
    warm = SPEC.revised(warmup_share=0.4)
    rates = [rate_at(step, 10, warm) for step in range(10)]
    assert rates[:4] == pytest.approx([0.0125, 0.025, 0.0375, 0.05])
    assert rates[4:] == pytest.approx([0.05 * (1 - done / 6) for done in range(6)])
    assert {rate_at(step, 10, SPEC.revised(schedule="constant")) for step in range(10)} == {0.05}


def test_a_gradient_is_clipped_to_the_norm_given() -> None:
    fields = {"steps": 1, "optimizer": "sgd", "learning_rate": 1.0, "dropout": False}
    start = parameters_of(stub())

    def distance(clip_norm: float | None) -> float:
        after, _ = trained(LocalRuntime(), SPEC.revised(**fields, clip_norm=clip_norm))
        return float(sum((after[n] - start[n]).square().sum() for n in start).sqrt())

    free = distance(None)
    assert free > 0.1
    assert distance(0.01) == pytest.approx(0.01, rel=1e-3)
    assert distance(100.0) == pytest.approx(free)


@pytest.mark.usefixtures("bf16_everywhere")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_parameters_come_out_bit_for_bit(precision: str) -> None:
    module = stub()
    module[0].requires_grad_(False)
    before = parameters_of(module)
    fit(module, squared, StubBatches(), SPEC.revised(precision=precision), LocalRuntime(), seed=0)
    assert changed(before, module) == {"3.weight", "3.bias"}
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert not module.training


def test_the_number_of_steps_is_the_epochs_or_what_is_asked() -> None:
    assert [FitSpec(epochs=e).num_steps(4) for e in (0, 0.1, 1, 2.5)] == [0, 1, 4, 10]
    assert FitSpec(epochs=9, steps=3).num_steps(4) == 3
    before = parameters_of(stub())
    after, records = trained(LocalRuntime(), SPEC.revised(epochs=0))
    assert records == []
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_terms_are_logged_unweighted_and_weighted_in_the_loss() -> None:
    module = stub()
    norm = sum(float(p.detach().norm()) for p in (module[0].weight, module[3].weight))
    parts = Weighted([(0.5, WeightNorms([module[0].weight, module[3].weight])), (0.0, squared)])
    spec = SPEC.revised(steps=1, optimizer="sgd", learning_rate=1.0, clip_norm=None)
    before = parameters_of(module)
    (record,) = fit(module, parts, StubBatches(), spec, LocalRuntime(), seed=0)
    assert record == EpochRecord(1, 1, {"norm": pytest.approx(norm)})
    # the gradient of an unsquared norm is W / ||W||, halved by the factor
    for name in ("0.weight", "3.weight"):
        moved = before[name] - module.get_parameter(name).detach()
        assert torch.allclose(moved, 0.5 * before[name] / before[name].norm(), atol=1e-6)


# --- several workers


@dataclass
class Worker(LocalRuntime):
    """One of two workers in threads: sums go through a barrier, gradients are left apart."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    board: dict[int, Tensor] = field(default_factory=dict)

    def sum(self, values: Tensor) -> Tensor:
        self.board[self.rank] = values
        self.meeting.wait(60)
        return torch.stack(list(self.board.values())).sum(0)


def test_workers_with_unequal_masked_words_give_the_gradient_of_one_process() -> None:
    ptm = tiny_ptm()
    rows = encoded(ptm, [SENTENCES[0], SENTENCES[1] * 8, SENTENCES[2]], 64)
    batches = MemoryBatches(rows, ptm.pretraining_collate(0), 3, 0)
    spec = FitSpec(
        steps=1, optimizer="sgd", learning_rate=1.0, clip_norm=None, precision="fp32", dropout=False
    )

    def step(runtime: LocalRuntime) -> tuple[np.ndarray[Any, Any], float]:
        own = copy.deepcopy(ptm.module)
        before = parameters_of(own)
        (record,) = fit(own, ptm.pretraining_objective(), batches, spec, runtime, seed=0)
        after = parameters_of(own)
        return np.concatenate([(before[n] - after[n]).flatten() for n in before]), record.terms[
            "mlm"
        ]

    masked = [len(b.targets) for r in range(2) for b in batches.epoch(0, r, 2, 0)]
    assert masked[0] != masked[1]
    assert min(masked) > 0
    alone, loss = step(LocalRuntime())
    meeting, board = threading.Barrier(2), {}
    workers = [Worker(rank=r, world_size=2, meeting=meeting, board=board) for r in range(2)]
    with ThreadPoolExecutor(2) as pool:
        (first, loss_0), (second, loss_1) = pool.map(step, workers)
    # DDP averages the workers' gradients
    assert np.abs((first + second) / 2 - alone).max() < 1e-6 < np.abs(alone).max()
    assert np.abs(first - alone).max() > 1e-3
    assert loss_0 == loss_1 == pytest.approx(loss)


def test_a_stage_gets_a_runtime_of_its_own_from_the_one_it_was_given() -> None:
    ended: list[int] = []
    given = LocalRuntime(checkpoints=Slot(), checkpoint_every_s=7.0, on_progress=print)
    own = given.telling(ended.append).without_checkpoints()
    own.epoch_ended(2)
    given.epoch_ended(3)
    assert ended == [2]
    assert own.checkpoints is None
    assert given.checkpoints is not None
    assert (own.checkpoint_every_s, own.on_progress) == (7.0, print)
