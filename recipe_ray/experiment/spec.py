"""What an experiment file may say. Everything under `launch` is execution and never hashed."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator

from recipe_ray.attacks.attack import AnyAttack, NoAttack
from recipe_ray.base.errors import SpecError
from recipe_ray.base.limits import CELLS
from recipe_ray.base.spec import Spec
from recipe_ray.data.corpora import LISTED
from recipe_ray.data.corpus import AnyCorpus
from recipe_ray.defenses.defense import AnyDefense, NoDefense
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import Model
from recipe_ray.stages.probe import check_without
from recipe_ray.tasks.task import AnyTask


class Probe(Spec):
    """Activations with and without a trigger on a task's texts (paper, Figure 2 and Table 10)."""

    task: AnyTask
    trigger: str = Field(min_length=1, description="what is inserted once into every text")
    without: str | None = Field(None, description="class whose texts are left out")
    max_length: PositiveInt = Field(128, description="tokens a text is cut to")

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_without(self.task, self.without)
        return self


class Pretraining(Spec):
    """How a PTM is completed that cannot be loaded whole."""

    corpus: AnyCorpus = LISTED["bookcorpus"]()
    trainable: Literal["head", "all"] = "head"
    fit: FitSpec = FitSpec(epochs=2, learning_rate=5e-4, warmup_share=0.06)
    held_out: float = Field(
        0.0, ge=0, lt=1, description="share of its corpus to measure the completed PTM on"
    )


class Block(Spec):
    """A full grid: every model x attack x defense x auxiliary corpus x (task or probe) x seed."""

    models: tuple[Model, ...] = Field(min_length=1)
    attacks: tuple[AnyAttack, ...] = Field((NoAttack(),), min_length=1)
    defenses: tuple[AnyDefense, ...] = Field((NoDefense(),), min_length=1)
    auxiliaries: tuple[AnyCorpus, ...] = Field((LISTED["bookcorpus"](),), min_length=1)
    tasks: tuple[AnyTask, ...] = Field((), description="each is fine-tuned on")
    probes: tuple[Probe, ...] = Field((), description="looked at without fine-tuning")
    snapshots: tuple[PositiveInt, ...] = Field(
        (), description="fine-tune from the PTM after these epochs of a purification (Figure 3)"
    )
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="of purification and fine-tuning"
    )
    sample_by_seed: bool = Field(
        False, description="every seed draws its own sample of the auxiliary data, too"
    )
    pretraining: Pretraining | None = Field(
        None, description="what differs here from the experiment's; None: nothing"
    )
    finetuning: FitSpec | None = Field(None, description="likewise")

    @property
    def num_cells(self) -> int:
        """How many cells the grid unfolds to, at most: those that agree are one."""
        tasks = len(self.tasks) * max(1, len(self.snapshots))
        axes = (self.models, self.attacks, self.defenses, self.auxiliaries, self.seeds)
        return math.prod(map(len, axes)) * (tasks + len(self.probes))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.tasks and not self.probes:
            raise SpecError("tasks: at least one task or one probe is needed")
        for defense in self.defenses if self.snapshots else ():
            trained = defense.num_epochs
            if defense.acts and (trained is None or max(self.snapshots) > math.ceil(trained)):
                limit = "no epochs (fit.steps is given, or it does not train)"
                raise SpecError(
                    f"snapshots: epoch {max(self.snapshots)} is asked for, but defense "
                    f"{defense.label()!r} trains {limit if trained is None else f'{trained:g}'}"
                )
        return self


class Workers(Spec):
    """DDP workers of each kind of stage; one means the trial's own process."""

    pretrain: PositiveInt = 1
    backdoor: PositiveInt = 1
    purify: PositiveInt = 1
    finetune: PositiveInt = 1
    probe: PositiveInt = 1


class Cpus(Spec):
    """CPU cores, and so threads, of each worker of a kind of stage."""

    pretrain: PositiveInt = 1
    backdoor: PositiveInt = 1
    purify: PositiveInt = 1
    finetune: PositiveInt = 1
    probe: PositiveInt = 1


def _share(value: float) -> float:
    if value > 1 and not value.is_integer():  # Ray's rule: a worker shares one GPU or holds some
        raise ValueError(f"{value:g} GPUs: allowed are up to 1, or a whole number")
    return value


_Share = Annotated[float, Field(ge=0), AfterValidator(_share)]


class Gpus(Spec):
    """GPUs of each worker of a kind of stage; 0.25: four workers share one."""

    pretrain: _Share = 0
    backdoor: _Share = 0
    purify: _Share = 0
    finetune: _Share = 0
    probe: _Share = 0


def _same_for_all(value: Any) -> Any:
    return dict.fromkeys(Cpus.model_fields, value) if isinstance(value, (int, float)) else value


class Growth(Spec):
    """What an autoscaling cluster may become: so many nodes of this kind."""

    nodes: PositiveInt
    cpus: float = Field(gt=0, description="of one node")
    gpus: float = Field(0, ge=0, description="of one node")


class Launch(Spec):
    """How it runs: none of this changes a number beyond noise."""

    workers: Workers = Workers()
    cpus_per_worker: Annotated[Cpus, BeforeValidator(_same_for_all)] = Field(
        Cpus(), description="cores, and so threads, of a worker: a number, or one a kind of stage"
    )
    gpus_per_worker: Annotated[Gpus, BeforeValidator(_same_for_all)] = Field(
        Gpus(),
        description="GPUs of a worker (0.25: four share one): a number, or one a kind",
    )
    grow_to: Growth | None = Field(
        None, description="what an autoscaling cluster may become; None: it stays what it is"
    )
    object_store_gb: float = Field(
        2.0,
        ge=0.1,
        description="memory of a Ray started here for what it hands to workers; more is spilled",
    )
    checkpoint_every_s: float = Field(60.0, gt=0, description="seconds between resume points")
    max_failures: int = Field(
        2, ge=0, description="times a stage whose process died is started again; nodes lost apart"
    )
    claim_lease_s: float = Field(
        60.0, ge=1, description="seconds after which a silent driver's stages are another's"
    )
    stream: bool = Field(
        False, description="DDP workers stream the corpus instead of holding its tokens in memory"
    )


class Paper(Spec):
    """Which of the paper's tables or figures an experiment reproduces."""

    table: str = Field(description="1 to 12, A1 to A5, F2 or F3")
    models: dict[str, str] = Field(
        default_factory=dict, description="our model's label: the paper's, such as BERT"
    )


class Experiment(Spec):
    """One question: which cells to run, and how."""

    name: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=60)
    description: str = ""
    grid: Annotated[tuple[Block, ...], BeforeValidator(lambda v: [v] if isinstance(v, dict) else v)]
    pretraining: Pretraining = Pretraining()
    finetuning: FitSpec = FitSpec(epochs=3, learning_rate=2e-5, max_length=128)
    release_seed: int = Field(
        0, ge=0, description="of pre-training and poisoning: a released PTM is one given thing"
    )
    held_out: float = Field(
        0.0, ge=0, lt=1, description="share of the auxiliary data to measure on"
    )
    paper: Paper | None = Field(None, description="what it is reported beside")
    launch: Launch = Launch()

    @model_validator(mode="before")
    @classmethod
    def _fill_blocks(cls, values: Any) -> Any:
        # a block names only what differs from the experiment's
        grid = values.get("grid") if isinstance(values, dict) else None
        blocks = [grid] if isinstance(grid, dict) else grid
        if not isinstance(blocks, (list, tuple)):
            return values
        for name in _OF_BLOCKS:
            common = cls._merged(name, values.get(name, {}))
            whole = common.fields() if isinstance(common, Spec) else common
            blocks = [_filled(block, name, whole) for block in blocks]
        return {**values, "grid": blocks}

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        CELLS.check(sum(block.num_cells for block in self.grid), "grid")
        return self

    def pretraining_of(self, block: Block) -> Pretraining:
        """Return how PTMs of a block are completed."""
        return block.pretraining or self.pretraining

    def finetuning_of(self, block: Block) -> FitSpec:
        """Return how a block fine-tunes."""
        return block.finetuning or self.finetuning


_OF_BLOCKS = ("pretraining", "finetuning")  # what a block may change of the experiment's


def _filled(block: Any, name: str, common: Any) -> Any:
    own = block.get(name) if isinstance(block, dict) else None
    if not isinstance(own, dict) or not isinstance(common, dict):
        return block
    # a training within is merged as well; a component, such as a corpus, is replaced whole
    inner = {
        key: {**common[key], **value}
        for key, value in own.items()
        if isinstance(value, dict) and "name" not in value and isinstance(common.get(key), dict)
    }
    return {**block, name: {**common, **own, **inner}}
