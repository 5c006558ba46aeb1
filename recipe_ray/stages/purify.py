"""Stage `purify`: the defender's work. It holds a defense and unlabelled data, nothing else."""

from dataclasses import replace
from typing import Any

from pydantic import Field, PositiveInt

from recipe_ray.data.batches import Part
from recipe_ray.data.census import WordLoss
from recipe_ray.data.corpus import AnyCorpus, Corpus
from recipe_ray.defenses.defense import AnyDefense, Auxiliary
from recipe_ray.learn.runtime import Runtime
from recipe_ray.models.family import PTM
from recipe_ray.stages.evaluate import (
    MASK_SEED,
    WORD_SAMPLES,
    compare,
    held_out_eval,
    words_measured,
)
from recipe_ray.stages.learnable import LearnableFeed, check_usable
from recipe_ray.stages.stage import (
    STAGES,
    Context,
    Stage,
    loss_measurements,
    snapshot_folder,
)
from recipe_ray.store.rows import Measurement

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
        feed = LearnableFeed(context.feed, ptm)
        auxiliary = Auxiliary(self.corpus, feed, self._part)
        if self.held_out == 0:
            records = self.defense.purify(ptm, auxiliary, self._runtime(ptm, context), self.seed)
            context.save(ptm)
            return [*loss_measurements(records), *feed.measured()]
        rows = self._held_out_rows(ptm, context)
        before, words = (
            held_out_eval(ptm, rows, context.runtime),
            self.word_loss(ptm, rows, context),
        )
        records = self.defense.purify(ptm, auxiliary, self._runtime(ptm, context), self.seed)
        compared = compare(before, held_out_eval(ptm, rows, context.runtime))
        context.save(ptm)
        known = [words_measured(words)] if words is not None else []
        return [*loss_measurements(records), *feed.measured(), *compared, *known]

    def look_before(self, context: Context) -> tuple[float, WordLoss | None]:
        """Return the held-out loss of what is to be purified, and that of word frequencies alone.

        Both are what `run` measures. Raises DataError where nothing can be held out.
        """
        ptm = self.input_ptm(context)
        rows = self._held_out_rows(ptm, context)
        loss = held_out_eval(ptm, rows, context.runtime).loss
        return loss, self.word_loss(ptm, rows, context)

    def word_loss(self, ptm: PTM, held_out: Any, context: Context) -> WordLoss | None:
        """Return the loss that word frequencies in what is not held out give on what is."""

        def seen() -> Any:
            encode = ptm.encoder(HELD_OUT_LENGTH)
            return context.feed.rows(self.corpus, encode, replace(self._part, most=WORD_SAMPLES))

        return ptm.word_loss(held_out, MASK_SEED, seen)

    def _held_out_rows(self, ptm: PTM, context: Context) -> Any:
        part = Part(1.0 - self.held_out, 1.0)
        encode = ptm.encoder(HELD_OUT_LENGTH)
        rows = context.feed.rows(self.corpus, encode, part)
        check_usable(ptm.census(rows), self.corpus, ", held-out part")
        return rows

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
