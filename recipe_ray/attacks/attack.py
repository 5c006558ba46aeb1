"""What an attack is: triggers, the attacker's own corpus and training, and how it poisons a PTM."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, SerializeAsAny

from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import Component
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.feed import Feed
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.runtime import Runtime

ATTACKS: "Registry[Attack]" = Registry("attack", "recipe_ray.attacks")


class Attack(Component):
    """A way to backdoor a PTM."""

    poisons: ClassVar[bool] = True
    poisons_what: ClassVar[str | None] = "text"  # samples that carry the trigger; None: any

    triggers: tuple[str, ...]

    def pinned(self) -> Self:
        """Return the attack with the hub commit of what it takes over; most take over nothing."""
        return self

    def corpora(self) -> tuple[Corpus, ...]:
        """Return the attacker's own corpora, whose content is part of the backdoor's identity."""
        return tuple(value for _, value in self if isinstance(value, Corpus))

    @abstractmethod
    def poison(
        self,
        ptm: Any,
        feed: Feed,
        runtime: Runtime,
        seed: int,
        cache_dir: Path | None = None,
    ) -> Sequence[EpochRecord]:
        """Backdoor `ptm` in place; `cache_dir` keeps what an attack has to fetch beside corpora.

        Raises TriggerError for a trigger that the tokenizer does not keep.
        """


AnyAttack = Annotated[SerializeAsAny[Attack], BeforeValidator(ATTACKS.parse)]
