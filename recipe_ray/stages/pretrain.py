"""Stage `pretrain`: completes a PTM that cannot be loaded whole (a missing masked-LM head)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from recipe_ray.base.spec import HASHED_WHEN_SET, Spec
from recipe_ray.data.batches import Part
from recipe_ray.data.corpora import LISTED
from recipe_ray.data.corpus import AnyCorpus, Corpus
from recipe_ray.learn.loop import fit
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import PTM, Capability
from recipe_ray.stages.evaluate import MASK_SEED, WORD_SAMPLES, held_out_eval, words_measured
from recipe_ray.stages.kind import Point
from recipe_ray.stages.learnable import LearnableFeed
from recipe_ray.stages.stage import STAGES, Context, Stage, loss_measurements
from recipe_ray.store.rows import Measurement


class Pretraining(Spec):
    """How a PTM is completed that cannot be loaded whole."""

    corpus: AnyCorpus = LISTED["bookcorpus"]()
    trainable: Literal["head", "all"] = Field("head", description="all: the encoder continues too")
    fit: FitSpec = FitSpec(epochs=2, learning_rate=5e-4, warmup_share=0.06)
    held_out: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the corpus that is left out of training, to measure on",
        json_schema_extra=HASHED_WHEN_SET,
    )


class PretrainGrid(Spec):
    """What a block of the grid says of it."""

    pretraining: Pretraining | None = Field(
        None, description="changes to the experiment's settings; None: no change"
    )
    release_seed: int | None = Field(
        None, ge=0, description="of pre-training and poisoning here; None: the experiment's"
    )


@STAGES.register("pretrain")
class PretrainStage(Stage, Pretraining):
    """Pre-trains only the head, or head and encoder, with masks drawn again each epoch."""

    rank: ClassVar[int] = 10
    completes: ClassVar[bool] = True
    grid: ClassVar[type[Spec]] = PretrainGrid

    @classmethod
    def planned(cls, point: Point, ptm: Stage | None) -> Iterator[Stage | None]:
        """Yield the stage that completes the model, or nothing new if it can be loaded whole."""
        if not point.model.needs_pretraining:
            yield ptm
            return
        how: Pretraining = point.setting("pretraining")
        content = point.content(how.corpus)
        seed = point.setting("release_seed")
        yield point.make(cls, content=content, parent=ptm, seed=seed, **how.fields())

    def run(self, context: Context) -> list[Measurement]:
        """Return the loss of every epoch, and how good the PTM is on held-out data."""
        return self.complete(self.input_ptm(context), context)

    def complete(self, ptm: PTM, context: Context) -> list[Measurement]:
        """Do the same with a PTM in memory, which is taken over."""
        ptm.train_only(_SCOPES[self.trainable](ptm), pooled=False)
        feed = LearnableFeed(context.feed, ptm)
        batches = feed.batches(
            self.corpus,
            ptm.encoder(self.fit.max_length),
            ptm.pretraining_collate(self.seed, static_masks=False),
            self.fit.batch_size,
            self.seed,
            self._part,
        )
        records = fit(
            ptm.module,
            ptm.pretraining_objective(),
            batches,
            self.fit,
            context.runtime,
            seed=self.seed,
            phase="pretrain",
        )
        measured = self._quality(ptm, context) if self.held_out else []
        context.save(ptm)
        return [*loss_measurements(records), *feed.measured(), *measured]

    def _quality(self, ptm: PTM, context: Context) -> list[Measurement]:
        part = Part(1.0 - self.held_out, 1.0)
        encode = ptm.encoder(self.fit.max_length)
        rows = context.feed.rows(self.corpus, encode, part)
        loss = held_out_eval(ptm, rows, context.runtime).loss
        assert loss is not None  # its head is no longer as it was drawn
        shares = ptm.pretraining_quality(rows, context.runtime)

        def seen() -> Any:
            return context.feed.rows(self.corpus, encode, replace(self._part, most=WORD_SAMPLES))

        words = ptm.word_loss(rows, MASK_SEED, seen)
        return [
            Measurement("held_out_loss", loss),
            *([words_measured(words)] if words is not None else []),
            *(
                Measurement(
                    metric,
                    share.value,
                    numerator=share.numerator,
                    denominator=share.denominator,
                )
                for metric, share in shares.items()
            ),
        ]

    def corpora(self) -> list[tuple[Corpus, Part]]:
        """Return the corpus without what is held out."""
        return [(self.corpus, self._part)]

    @property
    def _part(self) -> Part:
        return Part(0.0, 1.0 - self.held_out)

    def needs(self) -> list[tuple[str, tuple[Capability, ...]]]:
        """Return what pre-training needs."""
        return [("pre-training", ("Pretrains",))]

    @property
    def origin(self) -> str:
        """This stage: what it makes is the clean PTM."""
        return self.key

    def own_columns(self) -> dict[str, Any]:
        """Return nothing: pre-training is part of the model."""
        return {}

    def default_label(self) -> str:
        """Return the model's name."""
        return self.model.label()


def _head(ptm: PTM) -> Any:
    return ptm.head_parameters()


def _everything(ptm: PTM) -> None:
    return None


_SCOPES: dict[str, Any] = {"head": _head, "all": _everything}
