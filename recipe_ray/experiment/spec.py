"""What an experiment file may say. Everything under `launch` is execution and never hashed."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from recipe_ray.attacks.attack import AnyAttack
from recipe_ray.attacks.none import NoAttack
from recipe_ray.base.spec import Spec
from recipe_ray.data.corpora.bookcorpus import BookCorpus
from recipe_ray.data.corpus import AnyCorpus
from recipe_ray.defenses.defense import AnyDefense
from recipe_ray.defenses.none import NoDefense
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import Model
from recipe_ray.tasks.task import AnyTask


class Block(Spec):
    """A full grid: every model x attack x defense x auxiliary corpus x task x seed."""

    models: tuple[Model, ...] = Field(min_length=1)
    attacks: tuple[AnyAttack, ...] = Field((NoAttack(),), min_length=1)
    defenses: tuple[AnyDefense, ...] = Field((NoDefense(),), min_length=1)
    auxiliaries: tuple[AnyCorpus, ...] = Field((BookCorpus(),), min_length=1)
    tasks: tuple[AnyTask, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="of purification and fine-tuning"
    )


class Pretraining(Spec):
    """How a PTM is completed that cannot be loaded whole."""

    corpus: AnyCorpus = BookCorpus()
    trainable: Literal["head", "all"] = "head"
    fit: FitSpec = FitSpec(epochs=2, learning_rate=5e-4, warmup_share=0.06)


class Workers(Spec):
    """DDP workers of each kind of stage; one means the trial's own process."""

    pretrain: PositiveInt = 1
    backdoor: PositiveInt = 1
    purify: PositiveInt = 1
    finetune: PositiveInt = 1


class Launch(Spec):
    """How it runs: none of this changes a number beyond noise."""

    workers: Workers = Workers()
    cpus_per_worker: PositiveInt = Field(1, description="CPU cores, and so threads, of a worker")
    gpus_per_worker: float = Field(0, ge=0, description="GPUs of a worker; 0.25: four share one")
    checkpoint_every_s: float = Field(60.0, gt=0, description="seconds between resume points")
    max_failures: int = Field(2, ge=0, description="times a DDP worker group is started again")
    stream: bool = Field(
        False, description="DDP workers stream the corpus instead of holding its tokens in memory"
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
    launch: Launch = Launch()
