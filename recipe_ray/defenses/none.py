"""No defense: the PTM as it was released."""

from collections.abc import Sequence
from typing import Any, ClassVar

from recipe_ray.defenses.defense import DEFENSES, Auxiliary, Defense
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.runtime import Runtime


@DEFENSES.register("none")
class NoDefense(Defense):
    """The PTM as it was released; it makes no purify stage."""

    acts: ClassVar[bool] = False

    def purify(
        self,
        ptm: Any,
        auxiliary: Auxiliary,
        runtime: Runtime,
        seed: int,
    ) -> Sequence[EpochRecord]:
        """Leave the PTM as it is."""
        return ()
