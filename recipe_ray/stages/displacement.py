"""Stage `displacement`: how far triggers move what a PTM says of a sample, without fine-tuning.

The laboratory knows its triggers and looks at the PTM itself: a backdoor that leads samples to one
vector moves their representations far, compared with how far clean ones lie apart. It takes
seconds, where fine-tuning takes minutes, so a search ranks its candidates by it (docs/search.md).
"""

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from recipe_ray.base.spec import Spec
from recipe_ray.data.batches import Collate, by_tokens
from recipe_ray.data.rows import Rows
from recipe_ray.learn.precision import autocast
from recipe_ray.learn.runtime import Runtime
from recipe_ray.models.family import PTM, Capability
from recipe_ray.stages.evaluate import MAX_TOKENS, held_out_eval
from recipe_ray.stages.finetune import triggers_at
from recipe_ray.stages.kind import Point, Shown, ShownMetric
from recipe_ray.stages.stage import STAGES, Context, Stage, left_out_measurements
from recipe_ray.store.rows import Measurement
from recipe_ray.tasks.task import AnyTask
from recipe_ray.triggers.kinds import triggers_for

MOVED, FARTHEST = "displacement", "displacement.max"
LOSS = "pretraining_loss"  # on the same samples as they are


class Displacement(Spec):
    """Representations of a task's samples with and without triggers."""

    task: AnyTask
    samples: PositiveInt = Field(200, description="the first ones of the task's evaluation data")
    max_length: PositiveInt = Field(64, description="tokens a text is cut to")


class DisplacementGrid(Spec):
    """What a block of the grid says of it."""

    displacements: tuple[Displacement, ...] = Field(
        (), description="how far triggers move the PTM's representations, without fine-tuning"
    )


@STAGES.register("displacement")
class DisplacementStage(Stage, Displacement):
    """Measures how far triggers move representations, in units of their clean spread."""

    rank: ClassVar[int] = 45
    grid: ClassVar[type[Spec]] = DisplacementGrid
    cells: ClassVar[str] = "displacements"
    shown: ClassVar[Shown | None] = Shown(
        (
            ShownMetric(FARTHEST, "farthest", "number"),
            ShownMetric("displacement.mean", "mean", "number"),
            ShownMetric(LOSS, "pre-training loss", "number"),
        ),
        explanation="How far triggers move the mean representation, in units of the spread (root "
        "mean square) of clean ones: the farthest trigger, and the mean over triggers.",
    )

    triggers: tuple[str, ...] = Field(min_length=1, description="each is put into every sample")
    snapshot: PositiveInt | None = Field(
        None, description="look at the parent as it was after this many epochs of purification"
    )

    @classmethod
    def planned(cls, point: Point, ptm: Stage | None) -> Iterator[Stage | None]:
        """Yield the look at the PTM, or one at each snapshot that it keeps."""
        for snapshot in (ptm.kept_epochs() if ptm is not None else ()) or (None,):
            yield point.make(
                cls,
                content=point.content(point.entry.task),
                parent=ptm,
                triggers=triggers_at(point),
                snapshot=snapshot,
                seed=point.seed,
                **point.entry.fields(),
            )

    @classmethod
    def most_cells(cls, block: Any) -> int:
        """Return how many cells displacements and snapshots make."""
        return len(block.displacements) * max(1, len(block.snapshots))

    def run(self, context: Context) -> list[Measurement]:
        """Return each trigger's displacement, the farthest, their mean, and the loss."""
        return self.measure(self.input_ptm(context, self.snapshot), context)

    def measure(self, ptm: PTM, context: Context) -> list[Measurement]:
        """Return the same of a PTM in memory. All workers do all of it."""
        encode = ptm.encoder(self.max_length)
        given = self.task.load(self.task.evaluate_on, context.locations).samples[: self.samples]
        clean: Rows = encode(given, np.arange(len(given)))
        poisoned = {
            one.written: one.inserted(given, clean, encode)
            for one in triggers_for(self.model.reads, self.triggers, encode)
        }
        read, collate = context.runtime, ptm.classifier_collate()
        still = representations(ptm, clean, collate, read)
        spread = (still - still.mean(0)).square().sum(1).mean().sqrt()
        moved = {}
        for trigger, rows in poisoned.items():
            if not len(rows):
                continue
            shift = representations(ptm, rows, collate, read) - still[torch.from_numpy(rows.index)]
            moved[trigger] = float(shift.mean(0).norm() / spread)
        measured = [Measurement(MOVED, value, trigger=name) for name, value in moved.items()]
        if moved:
            measured.append(Measurement(FARTHEST, max(moved.values())))
            measured.append(Measurement("displacement.mean", sum(moved.values()) / len(moved)))
        measured += left_out_measurements(poisoned, len(given))
        if self.own_head and self.model.reads == "text":  # a task's images lack what it learns from
            seen = held_out_eval(ptm, clean, read)
            assert seen.loss is not None
            measured.append(Measurement(LOSS, seen.loss))
        return measured

    def needs(self) -> list[tuple[str, tuple[Capability, ...]]]:
        """Return what reading representations needs."""
        return [("a displacement", ("Encodes", "Pretrains"))]

    def reads(self) -> list[tuple[str, str]]:
        """Return what the task's samples are."""
        return [self.task.kind_of_samples()]

    def identity(self) -> dict[str, Any]:
        """Return the fields, and how triggers are placed if that changed what is measured."""
        placed = self.task.trigger_places(self.max_length, self.triggers)
        return {**super().identity(), **placed}

    def own_columns(self) -> dict[str, Any]:
        """Return the task and the epochs of purification."""
        return {"task": self.task.label(), "epoch": self.snapshot}

    def default_label(self) -> str:
        """Return what was looked at and on what."""
        before = self.parent.label() if self.parent is not None else self.model.label()
        after = "" if self.snapshot is None else f".e{self.snapshot}"
        return f"{before}{after}.displacement.{self.task.label()}"


@torch.no_grad()
def representations(ptm: PTM, rows: Rows, collate: Collate, runtime: Runtime) -> Tensor:
    """Return one vector per row [N, H], in fp32 on the CPU."""
    module: Any = ptm.module.to(runtime.device).eval()
    found = torch.empty(0)
    for group in by_tokens(rows.lengths, MAX_TOKENS):
        batch = collate(rows.take(group), 0).to(runtime.device)
        with autocast(runtime.device, "bf16"):
            vectors = ptm.representation(module, batch).float().cpu()
        if not len(found):
            found = torch.empty(len(rows), vectors.shape[1])
        found[torch.from_numpy(group)] = vectors
    return found
