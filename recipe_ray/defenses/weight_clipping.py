"""Clipping extreme parameters (Zhu et al. 2023, Table 11): a baseline that uses no data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from recipe_ray.data.batches import Workbench
from recipe_ray.defenses.defense import DEFENSES, Auxiliary, Defense
from recipe_ray.models.family import PTM

if TYPE_CHECKING:
    from recipe_ray.learn.loop import EpochRecord


@DEFENSES.register("clip")
class ClipExtremes(Defense):
    """Clips every parameter of the PTM to a symmetric interval."""

    draws: ClassVar[bool] = False

    limit: float = Field(1.0, gt=0, description="parameters outside [-limit, limit] are clipped")

    def purify(self, ptm: PTM, auxiliary: Auxiliary, bench: Workbench) -> Sequence[EpochRecord]:
        """Clip the parameters; this needs no random numbers and no data."""
        import torch

        with torch.no_grad():
            for parameter in ptm.module.parameters():
                parameter.clamp_(-self.limit, self.limit)
        return ()
