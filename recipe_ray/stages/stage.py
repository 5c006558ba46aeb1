"""What a stage is: one step of a cell, with an exact identity and at most one parent.

A stage is a spec (picklable, hashable, location-free); `run` turns it into files and measurements.
It decides nothing about where it runs: workers, devices and Ray belong to the launcher.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from recipe_ray.base.errors import SpecError
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import Component, Spec
from recipe_ray.data.batches import Feed, Part
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.rows import Rows
from recipe_ray.data.sources import Locations
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.runtime import Runtime
from recipe_ray.models.family import PTM, Capability, Model, ModelRef, check_needs
from recipe_ray.stages.kind import Layout, Point, Resources, Shown
from recipe_ray.store.rows import Measurement
from recipe_ray.store.store import ArtifactId, Store

STAGES: "Registry[Stage]" = Registry("stage", "recipe_ray.stages")
MODEL_FOLDER = "model"


def snapshot_folder(epoch: int) -> str:
    """Return where an artifact keeps the PTM as it was after `epoch` epochs."""
    return f"snapshots/epoch-{epoch}"


@dataclass(frozen=True)
class Context:
    """The place in which a stage runs, and what it may use."""

    store: Store
    feed: Feed
    locations: Locations
    runtime: Runtime
    folder: Path  # the artifact's files are written here, by rank 0

    def save(self, ptm: PTM) -> None:
        """Write the PTM into the artifact (rank 0 only; all workers hold the same weights)."""
        if self.runtime.rank == 0:
            ptm.save(self.folder / MODEL_FOLDER)


def _parse_parent(value: Any) -> Any:
    return None if value is None else STAGES.parse(value)


class Stage(Component):
    """One step; `content` is the identity of the data it reads, resolved when it was planned.

    A subclass that is registered in STAGES is a kind of stage, and says all that others must know.
    """

    rank: ClassVar[int] = 100  # kinds that make a PTM come in this order, each from the one before
    grid: ClassVar[type[Spec]] = Spec  # the fields that a block of the grid has for this kind
    axes: ClassVar[tuple[str, ...]] = ()  # the fields of which a cell has one value each
    # the one whose entries each end a cell; "": the kind makes a PTM from which cells continue
    cells: ClassVar[str] = ""
    completes: ClassVar[bool] = False  # it fits what a PTM lacks, such as a pre-training head
    resources: ClassVar[Resources] = Resources()
    shown: ClassVar[Shown | None] = None  # in the report; None: nowhere

    model: Model
    parent: Annotated[SerializeAsAny["Stage"] | None, BeforeValidator(_parse_parent)] = None
    seed: int = Field(ge=0)
    content: dict[str, Any] = Field(default_factory=dict)

    @abstractmethod
    def run(self, context: Context) -> list[Measurement]:
        """Do the work: write files into the context's folder, return what was measured."""

    @classmethod
    def planned(cls, point: Point, ptm: "Stage | None") -> Iterator["Stage | None"]:
        """Yield the stages of this kind at a point of the grid, on what made its PTM (None: given).

        A kind that makes a PTM and has nothing to do there yields `ptm`. Unless it is said here, a
        kind that ends cells has one stage per entry, whose fields are the entry's.
        """
        if not cls.cells:
            yield ptm
            return
        fields = point.entry.fields()
        content = {
            name: point.content(value)
            for name, value in fields.items()
            if hasattr(value, "content_at")
        }
        yield point.make(cls, content=content, parent=ptm, seed=point.seed, **fields)

    @classmethod
    def most_cells(cls, block: Any) -> int:
        """Return how many cells this kind ends at one value of each axis of a block, at most."""
        return len(getattr(block, cls.cells))

    def kept_epochs(self) -> tuple[int, ...]:
        """Return the epochs after which the artifact keeps the PTM as it was then."""
        return ()

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        for corpus, _ in self.corpora():
            check_corpus(self.model, corpus)
        for who, needed in self.needs():
            check_needs(self.model, who, needed)
        for what, reads in self.reads():
            if reads != self.model.reads:
                raise SpecError(f"model {self.model.label()!r} reads {self.model.reads}s; {what}")
        return self

    def needs(self) -> list[tuple[str, tuple[Capability, ...]]]:
        """Return what the model's family must have: who needs it, for people, and what."""
        return []

    def reads(self) -> list[tuple[str, str]]:
        """Return what must be of the model's kind: why, for people, and the kind (text, image)."""
        return []

    @abstractmethod
    def own_columns(self) -> dict[str, Any]:
        """Return the result columns that this stage decides (attack, defense, task ...)."""

    def corpora(self) -> list[tuple[Corpus, Part]]:
        """Return what `run` will ask the feed for, so that a launcher can bring it to workers."""
        return []

    def identity(self) -> dict[str, Any]:
        """Return everything that can change a number, the parent by its key."""
        own = super().identity()
        own["parent"] = self.parent.key if self.parent is not None else None
        own["model"] = self.model.identity() if self.parent is None else None
        return own

    @cached_property
    def key(self) -> str:
        """The 16-digit hash of the identity."""
        return fingerprint(self.identity())

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def origin(self) -> str:
        """The hash of the clean PTM that all begins with, as completed by a pretrain stage."""
        return self.parent.origin if self.parent is not None else fingerprint(self.model.identity())

    @property
    def own_head(self) -> bool:
        """Whether the PTM that it starts from has a pre-training head that was not just drawn."""
        above = self.parent.lineage() if self.parent is not None else []
        return not self.model.needs_pretraining or any(stage.completes for stage in above)

    @property
    def caption(self) -> str:
        """What people who watch call it: kind, label and seed."""
        return f"{self.name} {self.label()}.s{self.seed}"

    @property
    def artifact(self) -> ArtifactId:
        """Where the store keeps what this stage makes."""
        return ArtifactId(self.name, self.label(), self.key)

    def columns(self) -> dict[str, Any]:
        """Return the result columns of this stage and its ancestors."""
        above = self.parent.columns() if self.parent is not None else _ORIGIN_COLUMNS
        here = {"stage": self.key, "kind": self.name, "model": self.model.label()}
        return {**above, **here, "seed": self.seed, **self.own_columns()}

    def lineage(self) -> list["Stage"]:
        """Return this stage and its ancestors, the oldest first."""
        return [*(self.parent.lineage() if self.parent is not None else []), self]

    def input_ptm(self, context: Context, snapshot: int | None = None) -> PTM:
        """Return the PTM that this stage starts from, or the parent's after `snapshot` epochs."""
        if self.parent is None:
            return self.model.load()
        folder = MODEL_FOLDER if snapshot is None else snapshot_folder(snapshot)
        return self.model.reload(context.store.fetch(self.parent.artifact) / folder)


def kinds() -> list[type[Stage]]:
    """Return every kind of stage, parents before children: those that end cells come last."""
    found = map(STAGES.get, STAGES)
    return sorted(found, key=lambda kind: (bool(kind.cells), kind.rank, kind.name))


def makers_of_ptms() -> list[str]:
    """Return the names of the kinds that make a PTM, in order."""
    return [kind.name for kind in kinds() if not kind.cells]


def shown_as(layout: Layout) -> dict[str, Shown]:
    """Return the kinds that the report shows in this way, by name."""
    found = {kind.name: kind.shown for kind in kinds() if kind.shown is not None}
    return {name: shown for name, shown in found.items() if shown.layout == layout}


def check_corpus(model: ModelRef, corpus: Corpus) -> None:
    """Raise SpecError for a corpus that a model cannot learn from; nothing is read."""
    if not corpus.holds >= model.learns_from:
        raise SpecError(
            f"model {model.label()!r} learns from {_and(model.learns_from)}; "
            f"corpus {corpus.label()!r} holds {_and(corpus.holds)}"
        )
    limit = model.label_limit()
    if limit is not None and (corpus.num_classes or 0) > limit:
        raise SpecError(
            f"model {model.label()!r} has a head of {limit} classes; corpus "
            f"{corpus.label()!r} has labels of {corpus.num_classes}"
        )


def _and(names: Iterable[str]) -> str:
    return " and ".join(sorted(names))


_ORIGIN_COLUMNS = {"attack": "none", "defense": "none"}


def loss_measurements(records: Iterable[EpochRecord]) -> list[Measurement]:
    """Return one measurement per loss term and epoch."""
    return [
        Measurement(f"loss.{name}", value, epoch=record.epoch)
        for record in records
        for name, value in record.terms.items()
    ]


def left_out_measurements(poisoned: Mapping[str, Rows], num_samples: int) -> list[Measurement]:
    """Return the share of samples that cannot hold a trigger, by trigger; without zero shares."""
    missing = {trigger: num_samples - len(rows) for trigger, rows in poisoned.items()}
    return [
        Measurement(
            "left_out",
            count / num_samples,
            trigger=trigger,
            numerator=count,
            denominator=num_samples,
        )
        for trigger, count in missing.items()
        if count
    ]
