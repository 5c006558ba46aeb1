"""What says without labels that a PTM was harmed: features of held-out samples, before and after.

A classifier that a user puts on a PTM can learn what its features tell apart. So it is measured
whether samples keep their neighbours, whether the old features can be read off the new ones by a
linear map, and over how many directions the features spread. None of it says that a backdoor is
gone. `api/harm.py` knows which of them foretell lost accuracy.

Legend: N samples, H width of the features.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipe_ray.data.census import WordLoss
from recipe_ray.store.rows import Measurement

Features = NDArray[np.float64]  # [N, H]

NEIGHBOURS = 10  # of a sample, by cosine
# fewer samples have too few others for that; more change no third digit, and cost their square
LEAST_SAMPLES, MOST_SAMPLES = 4 * NEIGHBOURS, 1000
PENALTIES = tuple(10.0**power for power in range(-6, 1))  # of the ridge, in mean eigenvalues

# metric -> what a card calls it; `.before` and `.after` are left off
TITLES = {
    "guard.effective_rank": "effective rank of the features",
    "guard.head_margin": "nats by which the pre-training head beats word frequencies",
    "guard.neighbours_kept": f"share of the {NEIGHBOURS} nearest neighbours kept",
    "guard.predictability": "linear predictability of the features before from those after (R^2)",
}


def guarded(before: Any, after: Any) -> list[Measurement]:
    """Return the guard's rows for features [N, H] of the same samples before and after.

    None for fewer than LEAST_SAMPLES samples; of more than MOST_SAMPLES the first ones count.
    """
    old, new = (np.asarray(part[:MOST_SAMPLES], dtype=np.float64) for part in (before, after))
    if len(old) < LEAST_SAMPLES:
        return []
    count = float(len(old))
    found = {
        "guard.neighbours_kept": neighbours_kept(old, new),
        "guard.predictability": predictability(old, new),
        "guard.effective_rank.before": effective_rank(old),
        "guard.effective_rank.after": effective_rank(new),
    }
    return [Measurement(name, value, denominator=count) for name, value in found.items()]


def head_margins(words: WordLoss, before: float, after: float) -> list[Measurement]:
    """Return by how many nats per masked token the head beats word frequencies, before and after.

    About 0 or less: it knows no context, so a pre-training loss through it holds nothing.
    """
    return [
        Measurement("guard.head_margin.before", words.mean - before),
        Measurement("guard.head_margin.after", words.mean - after),
    ]


def neighbours_kept(old: Features, new: Features) -> float:
    """Return the mean share of a sample's nearest others by cosine that are still among them."""
    kept = [np.isin(one, other).mean() for one, other in zip(_near(old), _near(new), strict=True)]
    return float(np.mean(kept))


def _near(features: Features) -> NDArray[np.int64]:
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    likeness = unit @ unit.T
    np.fill_diagonal(likeness, -np.inf)
    return np.argsort(-likeness, axis=1, kind="stable")[:, :NEIGHBOURS]


def predictability(wanted: Features, known: Features) -> float:
    """Return R^2 of a ridge regression from `known` to `wanted`, each sample left out in turn.

    The penalty is the best of PENALTIES by the same errors. All columns of `wanted` count
    together, so R^2 is the share of their total variance.
    """
    centred = known - known.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    target = wanted - wanted.mean(0)
    projected = left.T @ target
    count = len(wanted)
    unit = max(float(np.mean(sizes**2)), np.finfo(np.float64).tiny)
    errors = []
    for penalty in PENALTIES:
        shrunk = sizes**2 / (sizes**2 + penalty * unit)
        residual = target - left @ (shrunk[:, None] * projected)
        # of the mean, which is fitted too, each sample is 1 / N
        leverage = (left**2 * shrunk).sum(1) + 1 / count
        kept_off = residual / np.maximum(1 - leverage, 1e-6)[:, None]
        errors.append(float((kept_off**2).sum()))
    total = float(((target * count / (count - 1)) ** 2).sum())
    return 1 - min(errors) / max(total, float(np.finfo(np.float64).tiny))


def effective_rank(features: Features) -> float:
    """Return exp of the entropy of the normalised singular values (Roy and Vetterli 2007)."""
    sizes = np.linalg.svd(features - features.mean(0), compute_uv=False)
    shares = sizes / max(float(sizes.sum()), float(np.finfo(np.float64).tiny))
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
