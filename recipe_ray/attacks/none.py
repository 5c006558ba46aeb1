"""No attack: the clean PTM, whose rate of wrong answers on triggers is the floor of every ASR."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from recipe_ray.attacks.attack import ATTACKS, Attack
from recipe_ray.data.feed import Feed
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.runtime import Runtime


@ATTACKS.register("none")
class NoAttack(Attack):
    """The clean PTM; `triggers` empty means those of every attack of the experiment."""

    poisons: ClassVar[bool] = False
    poisons_what: ClassVar[str | None] = None

    triggers: tuple[str, ...] = ()

    def poison(
        self,
        ptm: Any,
        feed: Feed,
        runtime: Runtime,
        seed: int,
        cache_dir: Path | None = None,
    ) -> Sequence[EpochRecord]:
        """Leave the PTM as it is."""
        return ()
