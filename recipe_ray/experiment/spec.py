"""What an experiment file may say. Everything under `launch` is execution and never hashed."""

import math
from copy import copy
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    SerializeAsAny,
    create_model,
    model_validator,
)

from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.limits import CELLS
from recipe_ray.base.spec import Spec
from recipe_ray.learn.optim import FitSpec
from recipe_ray.models.family import Model
from recipe_ray.stages.pretrain import Pretraining
from recipe_ray.stages.stage import STAGES, Stage, kinds


class Block(Spec):
    """A full grid: every model x value of each axis x (task, probe ...) x seed.

    These are the fields of all kinds of stage; each kind adds its own (`grid_class`).
    """

    models: tuple[Model, ...] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(
        (0,), min_length=1, description="of purification and fine-tuning"
    )

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Return a field of a kind of stage."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _block, (self.fields(),)  # its class is made again in another process

    @property
    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The axes by field: a cell has one value of each. Without models and seeds."""
        return {axis: getattr(self, axis) for kind in kinds() for axis in kind.axes}

    @property
    def num_cells(self) -> int:
        """The most cells that the grid unfolds to; equal cells count as one."""
        each = (self.models, *self.axes.values(), self.seeds)
        ends = sum(kind.most_cells(self) for kind in kinds() if kind.cells)
        return math.prod(map(len, each)) * ends

    @model_validator(mode="after")
    def _check(self) -> Self:
        ends = [kind.cells for kind in kinds() if kind.cells]
        if not any(getattr(self, name) for name in ends):
            raise SpecError(f"{ends[0]}: at least one of {', '.join(ends)} is needed")
        for kind in kinds():  # what the fields of one kind say of each other
            kind.grid.model_validate({n: getattr(self, n) for n in kind.grid.model_fields})
        return self


def grid_class() -> type[Block]:
    """Return the class of a block, with the fields of every kind of stage that is registered.

    Raises SpecError if two kinds have a field of the same name.
    """
    return _grid_class(tuple(kinds()))


@cache
def _grid_class(found: tuple[type[Stage], ...]) -> type[Block]:
    owners = dict.fromkeys(Block.model_fields, "every kind of stage")
    fields: dict[str, Any] = {}
    for kind in found:
        for name, info in kind.grid.model_fields.items():
            if name in owners:
                raise SpecError(
                    f"stage {kind.name!r} has a field {name!r} of the grid, which is that of "
                    f"{owners[name]!r}: give it another name"
                )
            owners[name] = kind.name
            fields[name] = (info.annotation, copy(info))
    made: type[Block] = create_model("Block", __base__=Block, __module__=__name__, **fields)
    return made


def _block(value: Any) -> Any:
    return value if isinstance(value, Block) else grid_class().model_validate(value)


def _by_kind(value: Any) -> Any:
    """Return numbers by kind of stage; one number is that of every kind."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return dict.fromkeys(STAGES, value)
    for kind in value if isinstance(value, dict) else ():
        if kind not in STAGES:
            raise SpecError(unknown("kind of stage", str(kind), STAGES))
    return value


def _share(value: float) -> float:
    if value > 1 and not value.is_integer():  # Ray's rule: a worker shares one GPU or holds some
        raise ValueError(f"{value:g} GPUs: allowed are up to 1, or a whole number")
    return value


_Share = Annotated[float, Field(ge=0), AfterValidator(_share)]
_Numbers = Annotated[
    dict[str, PositiveInt],
    BeforeValidator(_by_kind, json_schema_input_type=PositiveInt | dict[str, PositiveInt]),
]
_Shares = Annotated[
    dict[str, _Share],
    BeforeValidator(_by_kind, json_schema_input_type=_Share | dict[str, _Share]),
]


class Growth(Spec):
    """What an autoscaling cluster may become: so many nodes of this kind."""

    nodes: PositiveInt
    cpus: float = Field(gt=0, description="CPUs of one node")
    gpus: float = Field(0, ge=0, description="GPUs of one node")


class Launch(Spec):
    """How it runs: none of this changes a number beyond noise."""

    workers: _Numbers = Field(
        {},
        description="DDP workers by kind of stage, or a number for all; one: the trial's own "
        "process",
    )
    cpus_per_worker: _Numbers = Field(
        {},
        description="cores, and so threads, of a worker: a number, or by kind of stage",
    )
    gpus_per_worker: _Shares = Field(
        {},
        description="GPUs of a worker (0.25: four share one): a number, or by kind of stage",
    )
    grow_to: Growth | None = Field(
        None, description="size up to which an autoscaling cluster may grow; None: it does not grow"
    )
    object_store_gb: float = Field(
        2.0,
        ge=0.1,
        description="memory of a Ray started here for what it hands to workers; more is spilled",
    )
    checkpoint_every_s: float = Field(60.0, gt=0, description="seconds between resume points")
    max_failures: int = Field(
        2,
        ge=0,
        description="how often a stage is started again after its process died; lost nodes are not "
        "counted",
    )
    claim_lease_s: float = Field(
        60.0,
        ge=1,
        description="seconds after which another driver may take over a silent driver's stages",
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
    grid: Annotated[
        tuple[Annotated[SerializeAsAny[Block], BeforeValidator(_block)], ...],
        BeforeValidator(
            lambda v: [v] if isinstance(v, dict) else v,
            json_schema_input_type=Block | tuple[Block, ...],
        ),
    ]
    pretraining: Pretraining = Pretraining()
    finetuning: FitSpec = FitSpec(epochs=3, learning_rate=2e-5, max_length=128)
    release_seed: int = Field(
        0, ge=0, description="of pre-training and poisoning: all seeds start from one released PTM"
    )
    held_out: float = Field(
        0.0, ge=0, lt=1, description="share of the auxiliary data to measure on"
    )
    paper: Paper | None = Field(
        None, description="the published values that the report compares with"
    )
    launch: Launch = Launch()

    @model_validator(mode="before")
    @classmethod
    def _fill_blocks(cls, values: Any) -> Any:
        # a block names only fields that differ from the experiment's
        grid = values.get("grid") if isinstance(values, dict) else None
        blocks = [grid] if isinstance(grid, dict) else grid
        if not isinstance(blocks, (list, tuple)):
            return values
        for name in cls.model_fields.keys() & grid_class().model_fields.keys():
            common = cls._merged(name, values.get(name, {}))
            whole = common.fields() if isinstance(common, Spec) else common
            blocks = [_filled(block, name, whole) for block in blocks]
        return {**values, "grid": blocks}

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        CELLS.check(sum(block.num_cells for block in self.grid), "grid")
        return self


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
