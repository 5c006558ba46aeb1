"""ACC and ASR, exactly as docs/method.md section 1 defines them, always with their counts.

Legend: N test samples, K triggers, C labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recipe_ray.base.errors import DataError

Labels = NDArray[np.int64]
LEFT_OUT = -1  # stands for the prediction of a sample that cannot hold the trigger


@dataclass(frozen=True)
class Share:
    """A share with its counts; the denominator is never zero."""

    numerator: int
    denominator: int

    @property
    def value(self) -> float:
        """The share as a fraction."""
        return self.numerator / self.denominator


@dataclass(frozen=True)
class Attacked:
    """What triggers did to a classifier: ASR of every trigger and label, and their summaries."""

    asr: dict[tuple[str, int], Share]

    def of_trigger(self, trigger: str) -> float:
        """Return ASR(t), the largest over labels."""
        return max(share.value for (name, _), share in self.asr.items() if name == trigger)

    @property
    def triggers(self) -> tuple[str, ...]:
        """The triggers, in the order given."""
        return tuple(dict.fromkeys(name for name, _ in self.asr))

    @property
    def aasr(self) -> float:
        """Mean of ASR(t) over triggers."""
        return float(np.mean([self.of_trigger(trigger) for trigger in self.triggers]))

    @property
    def masr(self) -> float:
        """Maximum of ASR(t) over triggers."""
        return max(self.of_trigger(trigger) for trigger in self.triggers)


def accuracy(predicted: Labels, truth: Labels) -> Share:
    """Return ACC of predictions [N]; raise DataError for an empty test set."""
    if not len(truth):
        raise DataError("accuracy of an empty test set")
    return Share(int((predicted == truth).sum()), len(truth))


def attack_success(
    predicted: dict[str, Labels], truth: Labels, num_labels: int, classes: Sequence[str]
) -> Attacked:
    """Return the ASR of every trigger and label from predictions [N] on poisoned samples.

    ASR(t, C) = share of the samples whose label is not C that are predicted as C; those LEFT_OUT
    count in neither number. Raises DataError naming the label where every sample has label C.
    """
    shares: dict[tuple[str, int], Share] = {}
    for trigger, labels in predicted.items():
        for target in range(num_labels):
            others = (truth != target) & (labels != LEFT_OUT)
            if not others.any():
                raise DataError(
                    f"the attack success rate of label {target} ({classes[target]}) is undefined: "
                    f"every test sample with trigger {trigger!r} has that label"
                )
            hits = int((labels[others] == target).sum())
            shares[trigger, target] = Share(hits, int(others.sum()))
    return Attacked(shares)
