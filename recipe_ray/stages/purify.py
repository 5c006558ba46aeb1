"""Stage `purify`: the defender's work. It holds only a defense and unlabelled data."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from pydantic import Field, PositiveInt, model_validator

from recipe_ray.base.errors import SpecError
from recipe_ray.base.spec import Spec
from recipe_ray.data.batches import Part, Workbench
from recipe_ray.data.census import WordLoss
from recipe_ray.data.corpora import LISTED
from recipe_ray.data.corpus import AnyCorpus, Corpus
from recipe_ray.defenses.defense import AnyDefense, Auxiliary, Defense, NoDefense
from recipe_ray.learn.runtime import Runtime
from recipe_ray.models.family import PTM, Capability
from recipe_ray.stages.evaluate import (
    MASK_SEED,
    WORD_SAMPLES,
    HeldOutEval,
    compare,
    held_out_eval,
    words_measured,
)
from recipe_ray.stages.guard import head_margins
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


@dataclass(frozen=True)
class Before:
    """A PTM to be purified, the held-out rows, what they show of it, what word frequencies give."""

    ptm: PTM
    rows: Any
    shown: HeldOutEval
    words: WordLoss | None


class PurifyGrid(Spec):
    """What a block of the grid says of it."""

    defenses: tuple[AnyDefense, ...] = Field((NoDefense(),), min_length=1)
    auxiliaries: tuple[AnyCorpus, ...] = Field((LISTED["bookcorpus"](),), min_length=1)
    snapshots: tuple[PositiveInt, ...] = Field(
        (), description="fine-tune from the PTM after these epochs of a purification (Figure 3)"
    )
    sample_by_seed: bool = Field(
        False, description="every seed also draws its own sample of the auxiliary data"
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
        0.0,
        ge=0,
        lt=1,
        description="share of the corpus that is left out of training, to measure on",
    )

    snapshots: tuple[PositiveInt, ...] = Field(
        (), description="epochs after which the PTM is also kept; such a stage cannot resume"
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
            defense=defense.settled(point.model.reads),
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
        if self.held_out == 0:
            return self.clean(self.input_ptm(context), context)
        return self.purify(self.look_before(context), context)

    def look_before(self, context: Context, ptm: PTM | None = None) -> Before:
        """Return what held-out data show of what is to be purified: of `ptm` if it is in memory.

        Raises DataError if nothing can be held out.
        """
        ptm = self.input_ptm(context) if ptm is None else ptm
        rows = self._held_out_rows(ptm, context)
        shown = held_out_eval(ptm, rows, context.runtime, own_head=self.own_head)
        words = self.word_loss(ptm, rows, context) if self.own_head else None
        return Before(ptm, rows, shown, words)

    def purify(self, before: Before, context: Context) -> list[Measurement]:
        """Do and return what `run` does, from what `look_before` returned, which is taken over."""
        measured = self.clean(before.ptm, context)
        after = held_out_eval(before.ptm, before.rows, context.runtime, own_head=self.own_head)
        measured += compare(before.shown, after)
        if before.words is None or before.shown.loss is None or after.loss is None:
            return measured
        margins = head_margins(before.words, before.shown.loss, after.loss)
        return [*measured, words_measured(before.words), *margins]

    def clean(self, ptm: PTM, context: Context) -> list[Measurement]:
        """Let the defense clean a PTM in memory, and save it; return what it measured itself."""
        feed = LearnableFeed(context.feed, ptm)
        runtime = self._runtime(ptm, context)
        bench = Workbench(feed, runtime, self.seed, context.locations.cache_dir)
        auxiliary = Auxiliary(self.corpus, self._part, self.own_head)
        records = self.defense.purify(ptm, auxiliary, bench)
        context.save(ptm)
        kept = [Measurement(name, value, epoch=epoch) for name, value, epoch in bench.kept]
        return [*loss_measurements(records), *kept, *feed.measured()]

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
        return context.runtime.telling(keep).without_checkpoints()

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
        needed = self.defense.needed(self.model.reads)
        return [(f"defense {self.defense.label()!r}", needed), *looks]

    def reads(self) -> list[tuple[str, str]]:
        """Return what parts of the defense read."""
        return self.defense.reads()

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
