"""Stage `finetune`: what a user of the PTM does, and the effect of the triggers on the result.

It fine-tunes on a downstream task, then measures ACC and, for every trigger and label, the ASR.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator
from safetensors.torch import save_file

from recipe_ray.attacks.attack import Attack
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.base.limits import RATES, TRIGGERS
from recipe_ray.base.spec import NOT_HASHED, Spec
from recipe_ray.data.batches import MemoryBatches
from recipe_ray.data.rows import Encode, Rows
from recipe_ray.learn.loop import fit
from recipe_ray.learn.metrics import (
    LEFT_OUT,
    MAJORITY,
    Attacked,
    Labels,
    Share,
    accuracy,
    attack_success,
    majority,
)
from recipe_ray.learn.objective import classification
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import PTM, Capability, Classifier
from recipe_ray.stages.evaluate import predict
from recipe_ray.stages.kind import Point, Shown, ShownMetric
from recipe_ray.stages.stage import (
    STAGES,
    Context,
    Stage,
    left_out_measurements,
    loss_measurements,
)
from recipe_ray.store.rows import Measurement
from recipe_ray.tasks.task import AnyTask
from recipe_ray.triggers.kinds import triggers_for
from recipe_ray.triggers.pictures import FILE, drawn
from recipe_ray.triggers.trigger import Trigger

CLASSIFIER = "classifier.safetensors"  # the fine-tuned weights, if they are kept
NUM_PICTURES = 6  # test samples that are kept as seen with each trigger


class FinetuneGrid(Spec):
    """What a block of the grid says of it."""

    tasks: tuple[AnyTask, ...] = Field((), description="each is fine-tuned on")
    finetuning: FitSpec | None = Field(
        None, description="changes to the experiment's settings; None: no change"
    )


@STAGES.register("finetune")
class FinetuneStage(Stage):
    """Fine-tunes on a task and measures ACC, and ASR with its counts."""

    rank: ClassVar[int] = 40
    grid: ClassVar[type[Spec]] = FinetuneGrid
    cells: ClassVar[str] = "tasks"
    shown: ClassVar[Shown | None] = Shown(
        (ShownMetric("acc", "ACC"), ShownMetric("aasr", "AASR"), ShownMetric("masr", "MASR")),
        layout="attack success",
    )

    task: AnyTask
    triggers: tuple[str, ...] = Field(description="triggers whose effect is measured; may be empty")
    fit: FitSpec = FitSpec(epochs=3, learning_rate=2e-5, max_length=128)
    snapshot: PositiveInt | None = Field(
        None, description="start from the parent as it was after this many epochs of purification"
    )
    keep_model: bool = Field(
        False, description="keep the fine-tuned classifier", json_schema_extra=NOT_HASHED
    )

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        TRIGGERS.check(len(self.triggers), "triggers")
        RATES.check(len(self.triggers) * self.task.num_labels, "triggers x classes, one ASR each")
        return self

    @classmethod
    def planned(cls, point: Point, ptm: Stage | None) -> Iterator[Stage | None]:
        """Yield the fine-tuning of the PTM, or one of each snapshot that it keeps."""
        for snapshot in (ptm.kept_epochs() if ptm is not None else ()) or (None,):
            yield point.make(
                cls,
                content=point.content(point.entry),
                parent=ptm,
                task=point.entry,
                triggers=triggers_at(point),
                fit=point.setting("finetuning"),
                snapshot=snapshot,
                seed=point.seed,
            )

    @classmethod
    def most_cells(cls, block: Any) -> int:
        """Return how many cells tasks and snapshots make."""
        return len(block.tasks) * max(1, len(block.snapshots))

    def run(self, context: Context) -> list[Measurement]:
        """Return ACC, the largest class's share, ASR(t, C), all with counts; ASR(t), AASR, MASR.

        And the training loss.
        """
        return self.measure(self.input_ptm(context, self.snapshot), context)

    def measure(self, ptm: PTM, context: Context) -> list[Measurement]:
        """Return the same of a PTM in memory, which is taken over."""
        encode = ptm.encoder(self.fit.max_length)
        triggers = triggers_for(self.model.reads, self.triggers, encode)
        train = self.task.load("train", context.locations)
        test = self.task.load(self.task.evaluate_on, context.locations)
        train_rows = _encoded(encode, train.samples).with_columns(label=train.labels)
        test_rows = _encoded(encode, test.samples)
        poisoned = {one.written: one.inserted(test.samples, test_rows, encode) for one in triggers}
        everything = [train_rows, test_rows, *poisoned.values()]
        classifier: Any = ptm.classifier(self.task.num_labels, self.seed, everything)
        classifier.requires_grad_(True)
        collate = ptm.classifier_collate()
        batches = MemoryBatches(train_rows, collate, self.fit.batch_size, self.seed)
        records = fit(
            classifier,
            classification,
            batches,
            self.fit,
            context.runtime,
            seed=self.seed,
            phase="fine-tune",
        )

        def predicted(rows: Rows) -> Labels:
            return predict(classifier, rows, collate, context.runtime, self.fit.precision)

        measured = loss_measurements(records)
        measured.append(_share("acc", accuracy(predicted(test_rows), test.labels)))
        measured.append(_share(MAJORITY, majority(test.labels)))
        if poisoned:
            labels = {
                trigger: _by_sample(predicted(rows), rows, len(test))
                for trigger, rows in poisoned.items()
            }
            attacked = attack_success(labels, test.labels, self.task.num_labels, self.task.classes)
            measured += _attack_measurements(attacked) + left_out_measurements(poisoned, len(test))
        if context.runtime.rank == 0:
            _save_pictures(triggers, test_rows, poisoned, context)
            if self.keep_model:
                _save_classifier(classifier, context)
        return measured

    def needs(self) -> list[tuple[str, tuple[Capability, ...]]]:
        """Return what the task needs."""
        return [(f"task {self.task.label()!r}", ("Encodes",))]

    def reads(self) -> list[tuple[str, str]]:
        """Return what the task's samples are."""
        return [self.task.kind_of_samples()]

    def identity(self) -> dict[str, Any]:
        """Return the fields, and how triggers are placed if that changed what is measured."""
        placed = self.task.trigger_places(self.fit.max_length, self.triggers)
        return {**super().identity(), **(placed if self.triggers else {})}

    def own_columns(self) -> dict[str, Any]:
        """Return the task, the epochs of purification and what this may be compared with."""
        same = {name: getattr(self, name).identity() for name in ("task", "fit")}
        same |= self.task.trigger_places(self.fit.max_length)
        return {
            "task": self.task.label(),
            "epoch": self.snapshot,
            "comparison": fingerprint({**same, "origin": self.origin, "content": self.content}),
        }

    def default_label(self) -> str:
        """Return what was fine-tuned and on what."""
        before = self.parent.label() if self.parent is not None else self.model.label()
        after = "" if self.snapshot is None else f".e{self.snapshot}"
        return f"{before}{after}.{self.task.label()}"


def _encoded(encode: Encode, samples: Sequence[Any]) -> Rows:
    rows: Rows = encode(samples, np.arange(len(samples)))
    return rows


def triggers_at(point: Point) -> tuple[str, ...]:
    attack: Attack = point.chosen["attacks"]
    if attack.poisons or attack.triggers:
        return attack.triggers
    # the clean PTM is the floor of every attack on this model in the experiment
    blocks = (block for block in point.experiment.grid if point.model in block.models)
    others = (other for block in blocks for other in block.attacks)
    return tuple(sorted({trigger for other in others for trigger in other.triggers}))


def _by_sample(predicted: Labels, rows: Rows, num_samples: int) -> Labels:
    labels = np.full(num_samples, LEFT_OUT)
    labels[rows.index] = predicted
    return labels


def _attack_measurements(attacked: Attacked) -> list[Measurement]:
    each = [
        _share("asr", share, trigger=trigger, label=label)
        for (trigger, label), share in attacked.asr.items()
    ]
    by_trigger = [
        Measurement("asr_trigger", attacked.of_trigger(trigger), trigger=trigger)
        for trigger in attacked.triggers
    ]
    return [
        *each,
        *by_trigger,
        Measurement("aasr", attacked.aasr),
        Measurement("masr", attacked.masr),
    ]


def _share(
    metric: str, share: Share, trigger: str | None = None, label: int | None = None
) -> Measurement:
    return Measurement(
        metric,
        share.value,
        trigger=trigger,
        label=label,
        numerator=share.numerator,
        denominator=share.denominator,
    )


def _save_pictures(
    triggers: Sequence[Trigger], clean: Rows, poisoned: Mapping[str, Rows], context: Context
) -> None:
    shown = np.unique(np.linspace(0, len(clean) - 1, NUM_PICTURES).astype(np.int64))
    grid = drawn(triggers, clean, poisoned, shown)
    if grid is not None:
        grid.save(context.folder / FILE)


def _save_classifier(classifier: Classifier, context: Context) -> None:
    save_file(classifier.whole_state(), context.folder / CLASSIFIER)
