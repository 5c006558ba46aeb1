"""What a defense is: it changes a PTM using auxiliary data alone (docs/method.md section 1).

The defense `none` is here: the PTM as it was released.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, SerializeAsAny

from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import Component
from recipe_ray.data.batches import Part, Workbench
from recipe_ray.data.corpus import Corpus
from recipe_ray.models.family import Capability

if TYPE_CHECKING:
    from recipe_ray.learn.loop import EpochRecord

DEFENSES: Registry[Defense] = Registry("defense", "recipe_ray.defenses")


@dataclass(frozen=True)
class Auxiliary:
    """The defender's data: a corpus, and which part of it to learn from.

    `own_head`: the PTM's pre-training head is its own; it was not drawn because its files lack one.
    """

    corpus: Corpus
    part: Part = field(default_factory=Part)
    own_head: bool = True


class Defense(Component):
    """A way to clean a PTM."""

    acts: ClassVar[bool] = True
    scans: ClassVar[bool] = False  # whether it trains against what a scan finds
    draws: ClassVar[bool] = True  # whether a seed changes what comes out
    needs: ClassVar[tuple[Capability, ...]] = ()  # what the family must have

    @abstractmethod
    def purify(self, ptm: Any, auxiliary: Auxiliary, bench: Workbench) -> Sequence[EpochRecord]:
        """Clean `ptm` in place; the auxiliary data come through `bench.feed`."""

    def needed(self, reads: str) -> tuple[Capability, ...]:
        """Return what it needs, as it is set, of a family that reads texts or images."""
        return self.needs

    def settled(self, reads: str) -> Self:
        """Return it with all that it leaves to what a model reads, so that its key says it."""
        return self

    def reads(self) -> list[tuple[str, str]]:
        """Return what must be of the model's kind: why, for people, and the kind (text, image)."""
        return []

    @property
    def held_by_head(self) -> bool:
        """Whether only the PTM's own pre-training head holds what the PTM knows."""
        return False

    @property
    def num_epochs(self) -> float | None:
        """Passes over the auxiliary data, if the defense trains by epochs."""
        return None

    @property
    def weight_factor_column(self) -> float | None:
        """The value of the result column `weight_factor`, if the defense has one."""
        return None


AnyDefense = Annotated[SerializeAsAny[Defense], BeforeValidator(DEFENSES.parse)]


@DEFENSES.register("none")
class NoDefense(Defense):
    """The PTM as it was released; it makes no purify stage."""

    acts: ClassVar[bool] = False

    def purify(self, ptm: Any, auxiliary: Auxiliary, bench: Workbench) -> Sequence[EpochRecord]:
        """Leave the PTM as it is."""
        return ()
