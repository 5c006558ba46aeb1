"""The one training loop. It knows no modality, attack, defense or Ray.

It steps, reduces, reports, keeps checkpoints, and stops if a loss is not a number. `Batches`
shuffles data, and the runtime places models.
"""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from recipe_ray.base.errors import DataError, NonFiniteLossError
from recipe_ray.learn.objective import Batch, Objective, Term
from recipe_ray.learn.optim import FitSpec, build_optimizer, rate_at
from recipe_ray.learn.precision import arithmetic, autocast, frozen_weights_cast
from recipe_ray.learn.progress import Progress
from recipe_ray.learn.resume_point import MisfitError, check_fits, phase_of
from recipe_ray.learn.runtime import Runtime

logger = logging.getLogger("recipe_ray")


class Batches(Protocol):
    """Every epoch's batches, dealt out to workers."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in one pass over the data."""
        ...

    def epoch(
        self, epoch: int, rank: int, world_size: int, start: int, *, more: bool = False
    ) -> Iterator[Batch]:
        """Yield this worker's shares of the global batches of `epoch`, from batch `start` on.

        With `more` the next epoch will be asked for after this one, and may be got ready.
        """
        ...


@dataclass(frozen=True)
class EpochRecord:
    """Means of the (unweighted) loss terms over one epoch, whole or the last one cut short."""

    epoch: int
    step: int
    terms: dict[str, float]


class _Step(nn.Module):
    """The module that DDP wraps: the whole objective is one forward pass."""

    def __init__(self, module: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.module = module
        self._objective = objective

    def forward(self, batch: Batch) -> dict[str, Term]:
        return self._objective(self.module, batch)


def fit(
    module: nn.Module,
    objective: Objective,
    batches: Batches,
    spec: FitSpec,
    runtime: Runtime,
    *,
    seed: int,
    phase: str = "train",
) -> list[EpochRecord]:
    """Train the parameters of `module` that require gradients; return one record per epoch.

    A checkpoint in the runtime's slot is resumed from: same steps, same batches, same dropout.
    Batch normalisation always uses the batch and keeps its running statistics up to date, with
    `spec.dropout` off as well. Each DDP worker normalises its own share; the running statistics
    are those of rank 0, which DDP hands to all before every step, and which all end with.
    Raises NonFiniteLossError with the step and the terms, DataError if a term of the loss had
    no element in any step.
    """
    if arithmetic(runtime.device, spec.precision) != spec.precision:
        logger.info("no bf16 arithmetic on this %s: trained in fp32", runtime.device.type)
    module.to(runtime.device)
    _set_mode(module, dropout=spec.dropout)
    num_steps = spec.num_steps(batches.steps_per_epoch)
    optimizer = build_optimizer(module.parameters(), spec)
    trainable = [p for group in optimizer.param_groups for p in group["params"]]
    state = _State(module, optimizer, runtime, phase)
    state.resume(num_steps)
    wrapped = runtime.wrap(_Step(module, objective))
    while state.step < num_steps:
        epoch = state.step // batches.steps_per_epoch
        with frozen_weights_cast(module, runtime.device, spec.precision):
            for batch in _rest_of_epoch(batches, state.step, num_steps, runtime):
                # before the step, so that an epoch is either open or recorded in a checkpoint
                state.save_if_due()
                _seed_step(seed, runtime.rank, state.step)
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(state.step, num_steps, spec)
                with autocast(runtime.device, spec.precision):
                    terms = wrapped(batch.to(runtime.device))
                loss = state.account(terms)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                if spec.clip_norm is not None:
                    nn.utils.clip_grad_norm_(trainable, spec.clip_norm, foreach=True)
                optimizer.step()
                state.step += 1
                done = (state.step, num_steps, state.latest, spec.batch_size, state.resumed_at)
                runtime.report(Progress(phase, *done))
                if state.step == num_steps:
                    break
        state.close_epoch(epoch)
        runtime.epoch_ended(epoch + 1)
    state.check_learnt()
    _take_from_first(state.buffers, runtime)
    module.eval()
    return state.records


def _rest_of_epoch(
    batches: Batches, step: int, num_steps: int, runtime: Runtime
) -> Iterator[Batch]:
    """Return this worker's batches from `step` to the end of the epoch it is in."""
    epoch, start = divmod(step, batches.steps_per_epoch)
    more = (epoch + 1) * batches.steps_per_epoch < num_steps
    return batches.epoch(epoch, runtime.rank, runtime.world_size, start, more=more)


def _set_mode(module: nn.Module, *, dropout: bool) -> None:
    module.train(dropout)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            # in eval mode it would neither normalise by the batch nor learn its statistics
            part.train()


def _take_from_first(buffers: dict[str, Tensor], runtime: Runtime) -> None:
    if runtime.world_size == 1:
        return
    for buffer in buffers.values():
        own = buffer if runtime.rank == 0 else torch.zeros_like(buffer)
        buffer.copy_(runtime.sum(own.clone()))


def _seed_step(seed: int, rank: int, step: int) -> None:
    # dropout becomes a function of (seed, rank, step), so that a resumed run repeats it
    torch.manual_seed((seed * 1_000_003 + rank) * 1_000_003 + step)


class _State:
    """What a training has done so far: the step, running sums of the terms, records, checkpoint."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, runtime: Runtime, phase: str
    ) -> None:
        self._trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
        # what a saved model has besides parameters: running statistics of batch normalisation
        whole = module.state_dict(keep_vars=True)
        self.buffers = {n: t for n, t in whole.items() if not isinstance(t, nn.Parameter)}
        self._optimizer = optimizer
        self._runtime = runtime
        self._phase = phase
        self._saved_at = time.monotonic()
        self.step = self.resumed_at = 0
        self.records: list[EpochRecord] = []
        self.latest: dict[str, float] = {}
        self._sums: dict[str, list[float]] = {}
        self._elements: dict[str, float] = {}  # of each term, over the whole training

    def account(self, terms: dict[str, Term]) -> Tensor:
        """Return this worker's loss, scaled so that DDP's mean is that of the global batch."""
        totals = [term.total.detach().float() for term in terms.values()]
        counts = [1.0 if term.count is None else float(term.count) for term in terms.values()]
        pair = torch.stack([torch.stack(totals), torch.tensor(counts, device=totals[0].device)])
        global_totals, global_counts = self._runtime.sum(pair.double()).tolist()
        losses: list[Tensor] = []
        for i, (name, term) in enumerate(terms.items()):
            count = max(global_counts[i], 1.0)
            losses.append(term.weight * self._runtime.world_size * term.total / count)
            self.latest[name] = global_totals[i] / count
            pair_of_sums = self._sums.setdefault(name, [0.0, 0.0])
            pair_of_sums[0] += global_totals[i]
            pair_of_sums[1] += count
            if term.count is not None:  # a norm has no count
                self._elements[name] = self._elements.get(name, 0.0) + global_counts[i]
        self._check_finite()
        return torch.stack(losses).sum()

    def _check_finite(self) -> None:
        if not all(math.isfinite(value) for value in self.latest.values()):
            values = ", ".join(f"{name} = {value}" for name, value in self.latest.items())
            where = f"{self._phase}, step {self.step}"
            raise NonFiniteLossError(
                f"{where}: the loss is not finite: {values}; if the model's weights and the data "
                "are sound, a smaller learning_rate helps"
            )

    def close_epoch(self, epoch: int) -> None:
        """Write down the means since the last epoch's end."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self.records.append(EpochRecord(epoch + 1, self.step, means))
        self._sums = {}

    def check_learnt(self) -> None:
        """Raise DataError if no term that counts had an element in all of the training.

        One of several may be empty by chance: few steps of an attack may hold no clean sample.
        """
        empty = sorted(self._elements)
        if empty and not any(self._elements.values()):
            raise DataError(
                f"{self._phase}: {self.step} steps had nothing to learn from: the loss "
                f"{' and '.join(empty)} had no element (for a masked LM: no masked token); give "
                "other or more data, or take more steps"
            )

    def save_if_due(self) -> None:
        """Save a checkpoint if the last is older than the runtime's interval (rank 0 only)."""
        slot = self._runtime.checkpoints
        due = time.monotonic() - self._saved_at >= self._runtime.checkpoint_every_s
        if slot is None or self._runtime.rank != 0 or not due:
            return
        slot.save(
            {
                "phase": self._phase,
                "step": self.step,
                "records": [asdict(record) for record in self.records],
                "sums": self._sums,
                "elements": self._elements,
                "parameters": {n: p.detach().cpu() for n, p in self._trainable.items()},
                "buffers": {n: b.detach().cpu() for n, b in self.buffers.items()},
                "optimizer": self._optimizer.state_dict(),
            }
        )
        self._saved_at = time.monotonic()

    def resume(self, num_steps: int) -> None:
        """Continue from the slot's checkpoint if it holds one of this phase; drop a misfit."""
        slot = self._runtime.checkpoints
        saved: Any = slot.load() if slot is not None else None
        if slot is None or saved is None:
            return
        try:
            if phase_of(saved) != self._phase:
                return
            check_fits(saved, num_steps, self._trainable, self.buffers, self._optimizer)
        except MisfitError as error:
            slot.drop(str(error))
            return
        self.step = self.resumed_at = saved["step"]
        self.records = [EpochRecord(**record) for record in saved["records"]]
        self._sums = saved["sums"]
        # a checkpoint of an earlier release does not say it: one element means that there were some
        self._elements = saved.get("elements", dict.fromkeys(self._sums, 1.0))
        with torch.no_grad():
            for name, parameter in self._trainable.items():
                parameter.copy_(saved["parameters"][name])
            for name, tensor in saved["buffers"].items():
                self.buffers[name].copy_(tensor)
        self._optimizer.load_state_dict(saved["optimizer"])
