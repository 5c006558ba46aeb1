"""ACC and ASR, as docs/method.md section 1 defines them, and whether a classifier learned anything.

Every share keeps its counts. A classifier at chance says nothing of triggers: one that always gives
the same answer has a MASR of 100 % on any PTM. ACC is above chance if the lower end of its exact
two-sided 95 % interval (Clopper and Pearson 1934) is above the largest class's share of the same
test set. That share is not an estimate: it is exactly what the constant answer gets on this set.

Legend: N test samples, K triggers, C labels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, lgamma, log
from typing import Any

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
    """The effect of triggers on a classifier: ASR of every trigger and label, and summaries."""

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
    count in neither number. Raises DataError naming the label if every sample has label C.
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


MAJORITY = "majority"  # metric of a fine-tuning: the largest class's share of its test set
LEVEL = 0.95  # of the interval
_NEGLIGIBLE = 1e-12  # of a sum


@dataclass(frozen=True)
class Learned:
    """ACC and the largest class's share of the same test set."""

    acc: Share
    majority: Share

    @property
    def at_chance(self) -> bool:
        """Whether ACC is not above the largest class's share, so that ASR says nothing."""
        return is_at_chance(self.acc, self.majority)

    def __str__(self) -> str:
        acc, largest = self.acc, self.majority
        return (
            f"ACC {100 * acc.value:.1f} % ({acc.numerator} of {acc.denominator}), the test set's "
            f"largest class {100 * largest.value:.1f} % ({largest.numerator})"
        )


def majority(truth: Labels) -> Share:
    """Return the share of the largest class among labels [N], N > 0."""
    return Share(int(np.bincount(truth).max()), len(truth))


def is_at_chance(acc: Share, largest: Share) -> bool:
    """Tell whether the lower end of the interval of ACC is not above the largest class's share.

    That end is above the share if a classifier that is right with that probability would be right
    as often as this one, or more often, in at most 2.5 % of all test sets.
    """
    if acc.numerator <= largest.value * acc.denominator:
        return True
    return _tail(acc.numerator, acc.denominator, largest.value) > (1 - LEVEL) / 2


def learned(rows: Iterable[Mapping[str, Any]]) -> Learned | None:
    """Return what the rows of one fine-tuning say of it; None if they lack the counts.

    Rows from before `majority` was measured have the classes' sizes in the denominators of ASR.
    """
    found = list(rows)
    shares = {row["metric"]: share for row in found if (share := _share(row)) is not None}
    if "acc" not in shares:
        return None
    acc = shares["acc"]
    largest = shares.get(MAJORITY) or _from_asr(acc.denominator, found)
    return Learned(acc, largest) if largest is not None else None


def _share(row: Mapping[str, Any]) -> Share | None:
    counted = row["numerator"] is not None and bool(row["denominator"])
    return Share(int(row["numerator"]), int(row["denominator"])) if counted else None


def _from_asr(num_samples: int, rows: Sequence[Mapping[str, Any]]) -> Share | None:
    asr = [row for row in rows if row["metric"] == "asr" and row["denominator"] is not None]
    # a denominator of ASR(t, C) is the number of samples whose label is not C
    counts = {
        row["label"]: num_samples - int(row["denominator"])
        for row in asr
        if row["trigger"] == asr[0]["trigger"]
    }
    whole = bool(counts) and min(counts.values()) >= 0 and sum(counts.values()) == num_samples
    return Share(max(counts.values()), num_samples) if whole else None


def _tail(least: int, count: int, share: float) -> float:
    """Return P(X >= least) of X ~ Binomial(count, share), share * count < least, share > 0."""
    whole = lgamma(count + 1) - lgamma(least + 1) - lgamma(count - least + 1)
    term = exp(whole + least * log(share) + (count - least) * log(1 - share))
    total = 0.0
    # above the mean each term is smaller than the one before
    for hits in range(least, count + 1):
        total += term
        if term <= _NEGLIGIBLE * total:
            break
        term *= (count - hits) / (hits + 1) * share / (1 - share)
    return total
