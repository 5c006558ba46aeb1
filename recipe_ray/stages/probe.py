"""Stage `probe`: which neurons of a PTM a trigger activates (paper, Figure 2 and Table 10).

The laboratory looks at the PTM itself, without fine-tuning. Test texts are read twice, as they are
and with one trigger inserted. Two readings of "active on a set of texts" are measured: by the mean
over the texts (`overlap`, `poisoned_only_neurons`), and text by text (`overlap_per_sample`).
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.spec import NOT_HASHED, Spec
from recipe_ray.data.batches import by_tokens
from recipe_ray.data.rows import Rows
from recipe_ray.learn.neuron_stats import Overlap, overlap_of_means, overlap_of_samples, pair_sums
from recipe_ray.learn.progress import Progress
from recipe_ray.learn.runtime import Runtime
from recipe_ray.models.family import PTM, Capability
from recipe_ray.stages.evaluate import MAX_TOKENS
from recipe_ray.stages.kind import Point, Shown, ShownMetric
from recipe_ray.stages.stage import (
    STAGES,
    Context,
    Stage,
    left_out_measurements,
)
from recipe_ray.store.rows import Measurement
from recipe_ray.tasks.task import AnyTask, Task
from recipe_ray.triggers.kinds import triggers_for


class Probe(Spec):
    """Activations with and without a trigger on a task's texts (paper, Figure 2 and Table 10)."""

    task: AnyTask
    trigger: str = Field(min_length=1, description="what is inserted once into every text")
    without: str | None = Field(None, description="class whose texts are left out")
    max_length: PositiveInt = Field(128, description="tokens a text is cut to")

    @model_validator(mode="after")
    def _check_without(self) -> Self:
        check_without(self.task, self.without)
        return self


class ProbeGrid(Spec):
    """What a block of the grid says of it."""

    probes: tuple[Probe, ...] = Field(
        (), description="neurons of the PTM are probed without fine-tuning"
    )


@STAGES.register("probe")
class ProbeStage(Stage, Probe):
    """Compares a PTM's activated neurons on test texts with and without a trigger."""

    rank: ClassVar[int] = 50
    grid: ClassVar[type[Spec]] = ProbeGrid
    cells: ClassVar[str] = "probes"
    shown: ClassVar[Shown | None] = Shown(
        (
            ShownMetric("overlap", "overlap"),
            ShownMetric("poisoned_only_neurons", "only poisoned", "number"),
        ),
        layout="neurons",
    )

    seed: int = Field(
        0,
        ge=0,
        description="of the cell; a probe draws no random numbers",
        json_schema_extra=NOT_HASHED,
    )

    @classmethod
    def planned(cls, point: Point, ptm: Stage | None) -> Iterator[Stage | None]:
        """Yield the probe of the PTM."""
        fields = point.entry.fields()
        content = point.content(point.entry.task)
        yield point.make(cls, content=content, parent=ptm, seed=point.seed, **fields)

    def run(self, context: Context) -> list[Measurement]:
        """Return the overlaps, over all layers and in each, and the poisoned-only neurons."""
        ptm = self.input_ptm(context)
        encode = ptm.encoder(self.max_length)
        [trigger] = triggers_for(self.model.reads, [self.trigger], encode)
        samples = self._samples(context)
        clean: Rows = encode(samples, np.arange(len(samples)))
        poisoned: Rows = trigger.inserted(samples, clean, encode)
        sums = probe(ptm, clean.take(poisoned.index), poisoned, context.runtime)
        measured = measurements(sums, [layer.num_neurons for layer in ptm.neuron_layers()])
        return measured + left_out_measurements({self.trigger: poisoned}, len(samples))

    def identity(self) -> dict[str, Any]:
        """Return the fields, and how triggers are placed if that changed what is measured."""
        placed = self.task.trigger_places(self.max_length, [self.trigger])
        return {**super().identity(), **placed}

    def needs(self) -> list[tuple[str, tuple[Capability, ...]]]:
        """Return what counting active neurons needs."""
        return [("a probe", ("HasNeurons",))]

    def reads(self) -> list[tuple[str, str]]:
        """Return what the task's samples are."""
        return [self.task.kind_of_samples()]

    def own_columns(self) -> dict[str, Any]:
        """Return the task and the trigger."""
        return {"task": self.task.label(), "trigger": self.trigger}

    def default_label(self) -> str:
        """Return what was probed and on what."""
        before = self.parent.label() if self.parent is not None else self.model.label()
        return f"{before}.probe.{self.task.label()}"

    def _samples(self, context: Context) -> tuple[Any, ...]:
        samples = self.task.load(self.task.evaluate_on, context.locations)
        if self.without is None:
            return samples.samples
        left_out = self.task.classes.index(self.without)
        return samples.take(np.flatnonzero(samples.labels != left_out)).samples


def check_without(task: Task, without: str | None) -> None:
    """Raise SpecError if `without` is given and names no class of the task."""
    if without is not None and without not in task.classes:
        raise SpecError(
            f"without: {unknown(f'class of task {task.name!r}', without, task.classes)}"
        )


@torch.no_grad()
def probe(ptm: PTM, clean: Rows, poisoned: Rows, runtime: Runtime) -> Tensor:
    """Return `pair_sums` [4, N] of the same samples without and with a trigger.

    Each worker does its share of the samples; all return the sums over all of them.
    """
    module: Any = ptm.module.to(runtime.device).eval()
    collate = ptm.classifier_collate()

    def activations(rows: Rows) -> Tensor:
        # in fp32, because the sign of values near zero counts
        batch = collate(rows, 0).to(runtime.device)
        return torch.cat([layer.float() for layer in ptm.neuron_activations(module, batch)], dim=1)

    num_neurons = sum(layer.num_neurons for layer in ptm.neuron_layers())
    sums = torch.zeros(4, num_neurons, dtype=torch.float64, device=runtime.device)
    groups = list(by_tokens(poisoned.lengths, MAX_TOKENS))
    mine = groups[runtime.rank :: runtime.world_size]
    for done, group in enumerate(mine, 1):
        sums += pair_sums(activations(clean.take(group)), activations(poisoned.take(group)))
        size = len(group) * runtime.world_size
        runtime.report(Progress("probe", done, len(mine), samples=size))
    return runtime.sum(sums).cpu()


def measurements(sums: Tensor, sizes: list[int]) -> list[Measurement]:
    """Return the measurements from sums [4, N] of layers with `sizes` neurons; `label`: the layer.

    If nothing is active on poisoned samples, the overlap is undefined and left out.
    """
    over_all = overlap_of_means(sums)
    only = float(over_all.only_poisoned)
    measured = [
        *_ratio("overlap", over_all),
        Measurement("poisoned_only_neurons", only, numerator=only, denominator=float(sum(sizes))),
        *_ratio("overlap_per_sample", overlap_of_samples(sums)),
    ]
    first = 0
    for layer, size in enumerate(sizes):
        here = overlap_of_means(sums, slice(first, first + size))
        measured += _ratio("overlap_layer", here, layer)
        first += size
    return measured


def _ratio(metric: str, overlap: Overlap, layer: int | None = None) -> list[Measurement]:
    if overlap.value is None:
        return []
    numerator, denominator = float(overlap.both), float(overlap.poisoned)
    return [Measurement(metric, overlap.value, None, None, layer, numerator, denominator)]
