"""Stage `purify`: the defender's work. It holds a defense and unlabelled data, nothing else."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from recipe_ray.base.errors import SpecError
from recipe_ray.base.spec import Spec
from recipe_ray.data.batches import Part, encode_all
from recipe_ray.data.census import WordLoss
from recipe_ray.data.corpora.bookcorpus import BookCorpus
from recipe_ray.data.corpus import AnyCorpus, Corpus
from recipe_ray.defenses.defense import AnyDefense, Auxiliary, Defense, NoDefense
from recipe_ray.learn.runtime import Runtime
from recipe_ray.models.family import PTM, Capability
from recipe_ray.stages.evaluate import (
    MASK_SEED,
    WORD_SAMPLES,
    compare,
    held_out_eval,
    words_measured,
)
from recipe_ray.stages.kind import Point
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


class PurifyGrid(Spec):
    """What a block of the grid says of it."""

    defenses: tuple[AnyDefense, ...] = Field((NoDefense(),), min_length=1)
    auxiliaries: tuple[AnyCorpus, ...] = Field((BookCorpus(),), min_length=1)
    snapshots: tuple[PositiveInt, ...] = Field(
        (), description="fine-tune from the PTM after these epochs of a purification (Figure 3)"
    )
    sample_by_seed: bool = Field(
        False, description="every seed draws its own sample of the auxiliary data, too"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for defense in self.defenses if self.snapshots else ():
            trained = defense.num_epochs
            if defense.acts and (trained is None or max(self.snapshots) > math.ceil(trained)):
                limit = "no epochs (fit.steps is given, or it does not train)"
                raise SpecError(
                    f"snapshots: epoch {max(self.snapshots)} is asked for, but defense "
                    f"{defense.label()!r} trains {limit if trained is None else f'{trained:g}'}"
                )
        return self


@STAGES.register("purify")
class PurifyStage(Stage):
    """Cleans a PTM with a defense and an auxiliary corpus."""

    rank: ClassVar[int] = 30
    grid: ClassVar[type[Spec]] = PurifyGrid
    axes: ClassVar[tuple[str, ...]] = ("defenses", "auxiliaries")

    defense: AnyDefense
    corpus: AnyCorpus
    held_out: float = Field(
        0.0, ge=0, lt=1, description="share of the corpus left out of training, to be measured on"
    )

    snapshots: tuple[PositiveInt, ...] = Field(
        (), description="epochs after which the PTM is kept as well; such a stage cannot resume"
    )

    @classmethod
    def planned(cls, point: Point, ptm: Stage | None) -> Iterator[Stage | None]:
        """Yield the stage that cleans, or nothing new if the defense does not act."""
        defense: Defense = point.chosen["defenses"]
        corpus: Corpus = point.chosen["auxiliaries"]
        if not defense.acts:
            yield ptm
            return
        if point.block.sample_by_seed:
            corpus = corpus.revised(sample_seed=corpus.sample_seed + point.seed)
        yield point.make(
            cls,
            content=point.content(corpus),
            parent=ptm,
            defense=defense,
            corpus=corpus,
            held_out=point.setting("held_out"),
            snapshots=point.block.snapshots,
            seed=point.seed if defense.draws else 0,
        )

    def kept_epochs(self) -> tuple[int, ...]:
        """Return the epochs of the snapshots."""
        return self.snapshots

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
            return encode_all(self.corpus, context.locations, encode, self._part, WORD_SAMPLES)

        return ptm.word_loss(held_out, MASK_SEED, seen)

    def _held_out_rows(self, ptm: PTM, context: Context) -> Any:
        part = Part(1.0 - self.held_out, 1.0)
        encode = ptm.encoder(HELD_OUT_LENGTH)
        rows = encode_all(self.corpus, context.locations, encode, part)
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

    def needs(self) -> list[tuple[str, tuple[Capability, ...]]]:
        """Return what the defense and a look at held-out data need."""
        held_out: tuple[Capability, ...] = ("Pretrains", "HasWeightGroups")
        looks = [("held_out > 0", held_out)] if self.held_out else []
        return [(f"defense {self.defense.label()!r}", self.defense.needs), *looks]

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
