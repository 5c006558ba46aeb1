"""Stage `purify`: the defender's work. It holds a defense and unlabelled data, nothing else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import Field, PositiveInt

from recipe_ray.data.corpus import AnyCorpus, Corpus
from recipe_ray.data.feed import Part, encode_all
from recipe_ray.defenses.defense import AnyDefense, Auxiliary
from recipe_ray.learn.runtime import Runtime
from recipe_ray.models.family import PTM
from recipe_ray.stages.examine import Examination, compare, examine
from recipe_ray.stages.rows import Measurement
from recipe_ray.stages.stage import (
    STAGES,
    Context,
    Stage,
    loss_measurements,
    snapshot_folder,
)

HELD_OUT_LENGTH = 64  # tokens of a text, as in the paper's purification


@STAGES.register("purify")
class PurifyStage(Stage):
    """Cleans a PTM with a defense and an auxiliary corpus."""

    defense: AnyDefense
    corpus: AnyCorpus
    held_out: float = Field(
        0.0, ge=0, lt=1, description="share of the corpus left out of training, to be measured on"
    )

    snapshots: tuple[PositiveInt, ...] = Field(
        (), description="epochs after which the PTM is kept as well; such a stage cannot resume"
    )

    def run(self, context: Context) -> list[Measurement]:
        """Return the defense's losses of every epoch, and what held-out data show of the change."""
        ptm = self.input_ptm(context)
        look = self._examiner(ptm, context)
        before = look()
        auxiliary = Auxiliary(self.corpus, context.feed, self._part)
        records = self.defense.purify(ptm, auxiliary, self._runtime(ptm, context), self.seed)
        after = look()
        context.save(ptm)
        compared = compare(before, after) if before is not None and after is not None else []
        return [*loss_measurements(records), *compared]

    def _runtime(self, ptm: PTM, context: Context) -> Runtime:
        if not self.snapshots:
            return context.runtime

        def keep(epoch: int) -> None:
            if epoch in self.snapshots and context.runtime.rank == 0:
                ptm.save(context.folder / snapshot_folder(epoch))

        # no checkpoints: one that is resumed from would lack the snapshots taken before it
        runtime: Any = context.runtime
        kept: Runtime = replace(runtime, on_epoch=keep, checkpoints=None)
        return kept

    def _examiner(self, ptm: PTM, context: Context) -> Callable[[], Examination | None]:
        if self.held_out == 0:
            return lambda: None
        part = Part(1.0 - self.held_out, 1.0)
        rows = encode_all(self.corpus, context.locations, ptm.encoder(HELD_OUT_LENGTH), part)
        return lambda: examine(ptm, rows, context.runtime)

    def corpora(self) -> list[tuple[Corpus, Part]]:
        """Return the auxiliary corpus without what is held out."""
        return [(self.corpus, self._part)]

    @property
    def _part(self) -> Part:
        return Part(0.0, 1.0 - self.held_out)

    def own_columns(self) -> dict[str, Any]:
        """Return the defense and its data."""
        return {
            "defense": self.defense.label(),
            "aux": self.corpus.label(),
            "aux_size": self.corpus.size,
            "weight_factor": self.defense.weight_factor_column,
            "sample_seed": self.corpus.sample_seed,
        }

    def default_label(self) -> str:
        """Return what was purified and how."""
        before = self.parent.label() if self.parent is not None else self.model.label()
        return f"{before}.{self.defense.label()}"
