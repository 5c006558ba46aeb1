"""Fine-pruning on auxiliary data, without the fine-tuning (Zhu et al. 2023, baselines).

Neurons are removed in increasing order of their mean activation over all auxiliary samples. It is
taken after the activation function and, in texts, at the first token. The variants for a PTM of 12
layers: FP (the last layer, share 1), FP-GM (all layers, share 4/12) and FP-GA (6/12 or 8/12).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, PositiveInt

from recipe_ray.base.errors import ModelError, SpecError
from recipe_ray.data.batches import Workbench
from recipe_ray.defenses.defense import DEFENSES, Auxiliary, Defense
from recipe_ray.models.family import PTM

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from recipe_ray.data.rows import Ints, Rows
    from recipe_ray.learn.loop import Batches, EpochRecord
    from recipe_ray.learn.objective import Batch
    from recipe_ray.learn.runtime import Runtime

# samples per worker at a time: no sum depends on it, so it is not a field
BATCH_SIZE = 32
_SCOPES = {"last": slice(-1, None), "all": slice(None)}


@DEFENSES.register("fine-pruning")
class FinePruning(Defense):
    """Removes the neurons that auxiliary data activate least."""

    draws: ClassVar[bool] = False
    needs = ("HasNeurons",)

    share: float = Field(1 / 3, gt=0, le=1, description="share of the neurons in scope; 1/3: FP-GM")
    scope: Literal["last", "all"] = Field("all", description="the last layer alone, or all layers")
    max_length: PositiveInt = Field(64, description="tokens a text is cut to")
    precision: Literal["bf16", "fp32"] = Field(
        "bf16", description="bf16: autocast, fp32 weights; fp32 on devices without bf16"
    )

    def purify(self, ptm: PTM, auxiliary: Auxiliary, bench: Workbench) -> Sequence[EpochRecord]:
        """Set the neurons' weight rows and biases to zero; nothing trains, so there are no records.

        Raises SpecError if `share` selects no neuron at all.
        """
        import torch

        from recipe_ray.learn.neuron_stats import least_active, prune

        layers = ptm.neuron_layers()[_SCOPES[self.scope]]
        num_neurons = sum(layer.num_neurons for layer in layers)
        count = round(self.share * num_neurons)
        if not count:
            raise SpecError(
                f"fine-pruning: share {self.share} of {num_neurons} neurons is less than one neuron"
            )
        collate = ptm.classifier_collate()
        batches = bench.feed.batches(
            auxiliary.corpus,
            ptm.encoder(self.max_length),
            lambda rows, epoch: _numbered(rows, collate(rows, epoch)),
            BATCH_SIZE * bench.runtime.world_size,
            bench.seed,
            auxiliary.part,
        )
        means = mean_activations(ptm, batches, bench.runtime, self.precision)[_SCOPES[self.scope]]
        prune(layers, least_active(torch.cat(means), count))
        return ()


def mean_activations(
    ptm: PTM, batches: Batches, runtime: Runtime, precision: str
) -> tuple[Tensor, ...]:
    """Return each layer's mean activations [n] over all samples, the same on every worker.

    Raises ModelError if an activation is not a finite number.
    """
    import torch

    from recipe_ray.learn.precision import autocast
    from recipe_ray.learn.progress import Progress

    module = ptm.module.to(runtime.device).eval()
    sizes = [layer.num_neurons for layer in ptm.neuron_layers()]
    # one more for the number of samples
    sums = torch.zeros(sum(sizes) + 1, dtype=torch.float64, device=runtime.device)
    mine = batches.epoch(0, runtime.rank, runtime.world_size, 0)
    with torch.no_grad():
        for step, numbered in enumerate(mine, 1):
            batch = _as_numbered(numbered).to(runtime.device)
            with autocast(runtime.device, precision):
                activations = ptm.neuron_activations(module, batch.samples)
            if _is_first_holder(batch.index, runtime):
                sums[:-1] += torch.cat([a.sum(0, dtype=torch.float64) for a in activations])
                sums[-1] += batch.num_samples
            size = batch.num_samples * runtime.world_size
            runtime.report(Progress("activations", step, batches.steps_per_epoch, samples=size))
    sums = runtime.sum(sums)
    if not bool(sums.isfinite().all()):
        raise ModelError("fine-pruning: the PTM's activations on auxiliary data are not finite")
    return torch.split(sums[:-1] / sums[-1], sizes)


@dataclass(frozen=True)
class _Numbered:
    """A batch and the numbers of its samples in the corpus."""

    index: Ints  # [B]
    samples: Batch

    @property
    def num_samples(self) -> int:
        return self.samples.num_samples

    def to(self, device: torch.device) -> _Numbered:
        return replace(self, samples=self.samples.to(device))


def _numbered(rows: Rows, samples: Batch) -> _Numbered:
    return _Numbered(rows.index, samples)


def _as_numbered(batch: Batch) -> _Numbered:
    assert isinstance(batch, _Numbered)
    return batch


def _is_first_holder(index: Ints, runtime: Runtime) -> bool:
    import torch

    # if a batch has fewer samples than there are workers, some samples are dealt out twice
    firsts = torch.zeros(runtime.world_size, dtype=torch.int64, device=runtime.device)
    firsts[runtime.rank] = int(index[0])
    held = runtime.sum(firsts).tolist()
    return held[runtime.rank] not in held[: runtime.rank]
