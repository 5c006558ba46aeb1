"""What a detector is: it looks for inputs that make a PTM forget what it reads, label-free.

It holds only a PTM and unlabelled data: no trigger, no task, no reference model. It finds scores
without a scale (robust z over what is normal in this one PTM). `calibration.py` knows what is
normal among clean PTMs.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, PositiveInt, SerializeAsAny

from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import Component, Spec
from recipe_ray.data.batches import Part, Workbench
from recipe_ray.data.corpus import Corpus
from recipe_ray.models.family import Capability

SAME_VECTOR = 0.95  # cosine of the shifts of two suspects that lead to one vector
DETECTORS: Registry[Detector] = Registry("detector", "recipe_ray.detectors")


class Pass(Spec):
    """How many texts something is put into, of how many tokens without it."""

    texts: PositiveInt
    length: int = Field(ge=2)


@dataclass(frozen=True)
class Suspect:
    """One input that was examined closely: what it is, for people, and its scores.

    `ids` are token ids (empty if it is not a word); `group` numbers the vector it leads to, from 0.
    `put` is what was put in, if it is no word: vectors [C, H], or a `Stamp` (`insertion.py` here).
    """

    shown: str
    scores: Mapping[str, float]
    ids: tuple[int, ...] = ()
    group: int | None = None
    put: Any = field(default=None, compare=False, repr=False)

    def in_group(self, number: int) -> Suspect:
        """Return it with its group."""
        return replace(self, group=number)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        scores = {name: round(value, 3) for name, value in self.scores.items()}
        return {"shown": self.shown, "ids": list(self.ids), "group": self.group, "scores": scores}


@dataclass(frozen=True)
class Outcome:
    """What a detector found in a PTM: the highest of every score, and the inputs with high ones.

    `not_measured` says why some scores could not be measured. `samples` is how many inputs were put
    through the PTM.
    """

    highest: Mapping[str, float]
    suspects: Sequence[Suspect]
    samples: int
    not_measured: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """The PTM that is scanned, and the unlabelled data for it.

    `has_head`: its pre-training head is its own; it was not drawn because its files lack one.
    `leads`: what detectors before found, the most suspicious first. `part`: of the corpus, what is
    looked at. `also`: token ids that are measured as well, whether they stand out or not.
    """

    ptm: Any
    corpus: Corpus
    has_head: bool
    leads: tuple[Suspect, ...] = ()
    part: Part = field(default_factory=Part)
    also: tuple[tuple[int, ...], ...] = ()


class Detector(Component):
    """A way to look for a backdoor."""

    reads: ClassVar[str] = "text"  # what the PTM must read
    rank: ClassVar[int] = 100  # detectors go in this order: later ones begin from what was found
    needs: ClassVar[tuple[Capability, ...]] = ()  # what its family must have
    # scores that say something without clean PTMs: robust z of inputs that were only tried. What
    # was optimised is far above what is normal in every PTM
    own_scale: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def search(self, subject: Subject, bench: Workbench) -> Outcome:
        """Return what was found, the same on every worker; the PTM is left as it was.

        Raises DataError if the corpus has too few samples that are long enough.
        """

    @abstractmethod
    def duration_s(self, subject: Subject, bench: Workbench) -> float:
        """Return about how many seconds `search` takes here, by a trial of a few seconds.

        Raises DataError as `search` does.
        """

    def fitted(
        self, subject: Subject, bench: Workbench, budget_s: float
    ) -> tuple[Self | None, float]:
        """Return what of it takes `budget_s` or less, and about how long that takes.

        If nothing does: None, and how long the least of it takes. Raises DataError like `search`.
        """
        takes_s = self.duration_s(subject, bench)
        return (self if takes_s <= budget_s else None), takes_s

    def whole(self) -> Self:
        """Return it without the limits of a budget; what is normal for that is normal for it."""
        return self


AnyDetector = Annotated[SerializeAsAny[Detector], BeforeValidator(DETECTORS.parse)]


def robust_z(values: Any, normal: Any) -> Any:
    """Return (values - median) / (1.4826 MAD), median and MAD being those of `normal`."""
    import numpy as np

    median = np.median(normal)
    spread = 1.4826 * np.median(np.abs(normal - median))
    return (values - median) / max(float(spread), 1e-12)


def groups_of(shifts: Any) -> list[int]:
    """Return which vector each shift [N, H] leads to, numbered from 0 in their order."""
    import numpy as np

    unit = shifts / np.maximum(np.linalg.norm(shifts, axis=1, keepdims=True), 1e-12)
    heads: list[Any] = []
    numbers = []
    for one in unit:
        near = [number for number, head in enumerate(heads) if float(one @ head) > SAME_VECTOR]
        if not near:
            heads.append(one)
        numbers.append(near[0] if near else len(heads) - 1)
    return numbers
