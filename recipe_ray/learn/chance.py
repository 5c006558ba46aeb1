"""Whether a classifier learned anything: its ACC against always guessing the largest class.

A classifier at chance says nothing of triggers: one that always answers the same has a MASR of 100 %
on any PTM. ACC counts as above chance if the lower end of its exact two-sided 95 % interval
(Clopper and Pearson 1934) lies above the largest class's share of the same test set. That share is
no estimate: on this test set it is what the best constant answer gets.
"""

from collections.abc import Iterable, Sequence
from math import exp, fsum, lgamma, log

import numpy as np

from recipe_ray.learn.metrics import Labels, Share

MAJORITY = "majority"  # metric: the largest class's share of the test set, with its counts
LEVEL = 0.95  # of the two-sided interval


def majority(truth: Labels) -> Share:
    """Return the share of the largest class among labels [N], N > 0."""
    return Share(int(np.bincount(truth).max()), len(truth))


def majority_of(num_samples: int, denominators: Iterable[Sequence[int]]) -> Share | None:
    """Return the share of the largest class from the denominators of ASR(t, C), all C of one t.

    Such a denominator is the number of samples whose label is not C. None if they are not that of
    one test set of so many samples: then every class has a count, and the counts add up to it.
    """
    for one in denominators:
        counts = [num_samples - denominator for denominator in one]
        if not counts or min(counts) < 0 or sum(counts) != num_samples:
            return None
        return Share(max(counts), num_samples)
    return None


def is_at_chance(acc: Share, largest: Share) -> bool:
    """Tell whether ACC is not above the largest class's share of the same test set.

    That the lower end of the interval is not above a share is that a classifier which is right
    with this probability is as good as ACC, or better, in more than 2.5 % of all test sets.
    """
    return _probability(acc.numerator, acc.denominator, largest.value) > (1 - LEVEL) / 2


def _probability(least: int, count: int, share: float) -> float:
    """Return P(X >= least) of X ~ Binomial(count, share)."""
    if share >= 1:
        return 1.0
    if least <= 0:
        return 1.0
    if share <= 0:
        return 0.0
    whole, hit, miss = lgamma(count + 1), log(share), log(1 - share)
    terms = (
        exp(whole - lgamma(k + 1) - lgamma(count - k + 1) + k * hit + (count - k) * miss)
        for k in range(least, count + 1)
    )
    return min(1.0, fsum(terms))
