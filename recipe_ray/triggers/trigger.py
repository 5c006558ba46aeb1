"""What a trigger is: something small that an attacker puts into a sample.

A trigger is a tool of the attacker, and of the laboratory that measures the attack. YAML and result
rows hold it as a string. Attacks, evaluation and probes parse the string and then use the object:
it checks that it survives encoding, puts itself into samples, and shows itself to people.

Of a family of PTMs it needs only the encoder, and of rows their columns. So neither `models/` nor
`data/` knows of this package, and nothing that a defender runs imports it, through any chain
(`tests/test_layers.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from recipe_ray.base.errors import TriggerError

if TYPE_CHECKING:
    from recipe_ray.data.images import Pixels


@dataclass(frozen=True)
class Trigger(ABC):
    """One trigger; `written` is its string in YAML and in the column `trigger` of result rows."""

    alike: ClassVar[str]  # message for two triggers of this kind whose encoded forms are equal

    written: str

    @classmethod
    @abstractmethod
    def parse(cls, written: str) -> Self:
        """Return the trigger of its string; raise TriggerError for another string."""

    @classmethod
    def checked(cls, written: Iterable[str], encode: Any) -> tuple[Self, ...]:
        """Return the triggers of their strings, in that order.

        `encode` is what the PTM's `encoder` returned. Raises TriggerError for a string that is not
        a trigger, a trigger that is lost in encoding, and two that become the same.
        """
        found: dict[Hashable, Self] = {}
        for one in written:
            trigger = cls.parse(one)
            form = trigger.encoded(encode)
            if form in found:
                raise TriggerError(f"triggers {found[form].written!r} and {one!r} {cls.alike}")
            found[form] = trigger
        return tuple(found.values())

    @abstractmethod
    def encoded(self, encode: Any) -> Hashable:
        """Return what the model gets of it, such as its tokens; raise TriggerError if it is lost.

        The check is in context: what is around a trigger in a sample may change it.
        """

    @abstractmethod
    def inserted(self, samples: Sequence[Any], rows: Any, encode: Any) -> Any:
        """Return the rows of samples with the trigger put in once (docs/method.md section 1).

        `rows` are those of the unchanged samples, `encode` the encoder that made them. A sample
        that cannot hold the trigger is left out, so that `index` may lack its number; TriggerError
        if none can.
        """

    @abstractmethod
    def pictures(self, rows: Any) -> Pixels | None:
        """Return how rows look to people, triggers on: pixels [N, 3, S, S]; None for texts."""
