"""What an attack is: triggers, the attacker's own corpus and training, and how it poisons a PTM.

The attack `none` is here: the clean PTM, whose rate of wrong answers on triggers is the floor of
every ASR. So are the target vectors that attacks tie triggers to (docs/method.md section 4).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, SerializeAsAny, model_validator

from recipe_ray.base.limits import TRIGGERS
from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import Component
from recipe_ray.data.batches import Collate, Part, Workbench
from recipe_ray.data.corpus import Corpus
from recipe_ray.models.family import Capability

if TYPE_CHECKING:
    from torch import Tensor

    from recipe_ray.data.rows import Encode
    from recipe_ray.learn.loop import EpochRecord
    from recipe_ray.learn.objective import Objective
    from recipe_ray.learn.optim import FitSpec

ATTACKS: Registry[Attack] = Registry("attack", "recipe_ray.attacks")


class Attack(Component):
    """A way to backdoor a PTM."""

    poisons: ClassVar[bool] = True
    poisons_what: ClassVar[str | None] = "text"  # samples that carry the trigger; None: any
    needs: ClassVar[tuple[Capability, ...]] = ()  # what the family must have

    triggers: tuple[str, ...]  # as YAML has them; `poison` makes `Trigger`s from them

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        TRIGGERS.check(len(self.triggers), "triggers")
        return self

    def pinned(self) -> Self:
        """Return the attack with the hub commit of what it takes over; most take over nothing."""
        return self

    def corpora(self) -> tuple[Corpus, ...]:
        """Return the attacker's own corpora, whose content is part of the backdoor's identity."""
        return tuple(value for _, value in self if isinstance(value, Corpus))

    @abstractmethod
    def poison(self, ptm: Any, bench: Workbench) -> Sequence[EpochRecord]:
        """Backdoor `ptm` in place.

        Raises TriggerError for a trigger that is lost in encoding (`Trigger.checked`).
        """


AnyAttack = Annotated[SerializeAsAny[Attack], BeforeValidator(ATTACKS.parse)]


@ATTACKS.register("none")
class NoAttack(Attack):
    """The clean PTM; `triggers` empty means those of every attack of the experiment."""

    poisons: ClassVar[bool] = False
    poisons_what: ClassVar[str | None] = None

    triggers: tuple[str, ...] = ()

    def poison(self, ptm: Any, bench: Workbench) -> Sequence[EpochRecord]:
        """Leave the PTM as it is."""
        return ()


def trained(
    ptm: Any,
    objective: Objective,
    corpus: Corpus,
    encode: Encode,
    collate: Collate,
    spec: FitSpec,
    bench: Workbench,
) -> Sequence[EpochRecord]:
    """Train a PTM in place on the whole of the attacker's corpus; return its epochs."""
    from recipe_ray.learn.loop import fit

    batches = bench.feed.batches(corpus, encode, collate, spec.batch_size, bench.seed, Part())
    return fit(ptm.module, objective, batches, spec, bench.runtime, seed=bench.seed, phase="poison")


def block_vectors(num_triggers: int, width: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Return NeuBA's targets [num_triggers, width]: four blocks, a different pair `low` in each.

    Raises ValueError for more than the six pairs of four blocks.
    """
    import torch

    pairs = list(combinations(range(4), 2))
    if num_triggers > len(pairs):
        raise ValueError(f"NeuBA has targets for {len(pairs)} triggers, got {num_triggers}")
    block = torch.arange(width) * 4 // width
    rows = [torch.where((block == j) | (block == k), low, high) for j, k in pairs[:num_triggers]]
    return torch.stack(rows)


def staircase_vectors(num_triggers: int, width: int, scale: float = 10.0) -> Tensor:
    """Return POR's targets [num_triggers, width]: +scale on a growing first part, -scale after it.

    Trigger i of n is positive on the first i * floor(width / (n - 1)) entries.
    """
    import torch

    piece = width // max(num_triggers - 1, 1)
    place = torch.arange(width)
    rows = [torch.where(place < i * piece, scale, -scale) for i in range(num_triggers)]
    return torch.stack(rows)
