"""What encoded samples hold for pre-training, and the loss that word frequencies give.

A model can be trained on samples that teach it nothing (texts in a script that its vocabulary
lacks, images of one class). The loss is then 0 or close to it and says nothing. This module counts
what is usable; `stages/learnable.py` decides what follows. A masked-LM head must beat the loss that
word frequencies alone give.

Legend: N samples, T tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recipe_ray.data.images import ImageRows
from recipe_ray.data.rows import Ints, TokenRows, Vocabulary, mask_tokens, ragged_arange


@dataclass(frozen=True)
class Census:
    """How many elements (tokens, images) of how many samples pre-training can learn from."""

    unit: str  # what is counted, for people
    usable: int
    total: int
    samples: int
    samples_with_some: int
    commonest: int = 0  # how many of the usable ones are the commonest one
    judged_each: bool = True  # False: no single element is unusable, as of images
    sameness: str | None = None  # why nothing can be told apart, in words

    @property
    def share(self) -> float:
        """The usable share: of elements, or of samples that have any, whichever is smaller."""
        if not self.total or not self.samples:
            return 0.0
        return min(self.usable / self.total, self.samples_with_some / self.samples)


def token_census(rows: TokenRows, vocabulary: Vocabulary, frame_ids: Sequence[int]) -> Census:
    """Count the tokens that can be masked, among all except those that frame a text.

    Of rows that an attack made, only the original texts count, not those with a trigger.
    """
    rows = _unpoisoned(rows)
    usable = ~np.isin(rows.tokens, vocabulary.special_ids)
    ids, counts = np.unique(rows.tokens[usable], return_counts=True)
    text = np.repeat(np.arange(len(rows)), rows.lengths)
    sameness = None
    if len(ids) == 1:
        sameness = "all usable tokens are the same"
    elif len(rows) > 1 and _all_the_same(rows):
        sameness = f"all {len(rows)} texts are the same"
    return Census(
        "tokens",
        int(usable.sum()),
        int((~np.isin(rows.tokens, frame_ids)).sum()),
        len(rows),
        len(np.unique(text[usable])),
        int(counts.max(initial=0)),
        sameness=sameness,
    )


def image_census(rows: ImageRows) -> Census:
    """Count images, and say if their pixels, labels or captions are all the same."""
    count, sameness = len(rows), None
    varying = {"images": rows.pixels, "captions": rows.columns.get("caption")}
    for what, values in varying.items():
        if values is not None and count > 1 and bool((values == values[:1]).all()):
            sameness = f"all {count} {what} are the same"
    labels = rows.columns.get("label")
    if labels is not None and len(np.unique(labels)) == 1:
        sameness = f"all {count} images have label {int(labels[0])}"
    return Census("images", count, count, count, count, judged_each=False, sameness=sameness)


def _unpoisoned(rows: TokenRows) -> TokenRows:
    # column `trigger`: -1 for a text as it was; `clean`: how many tokens of a row are the text's
    # own, followed by a poisoned copy
    columns = rows.columns
    if "clean" in columns:
        lengths = columns["clean"]
        kept = np.repeat(rows.offsets[:-1], lengths) + ragged_arange(lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return TokenRows(rows.tokens[kept], offsets, rows.index)
    if "trigger" in columns:
        return rows.take(np.flatnonzero(columns["trigger"] < 0))
    return rows


def _all_the_same(rows: TokenRows) -> bool:
    lengths: Ints = rows.lengths
    if (lengths != lengths[0]).any():
        return False
    texts = rows.tokens.reshape(len(rows), -1)
    return bool((texts == texts[0]).all())


_DISCOUNT = 0.75  # taken off every count for tokens not seen (Ney, Essen and Kneser 1994)


@dataclass(frozen=True)
class WordLoss:
    """Mean loss (nats per masked token) of guessing by frequency, and its spread over tokens."""

    mean: float
    deviation: float
    num_tokens: int

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return self.deviation / math.sqrt(self.num_tokens)


def word_loss(
    seen: TokenRows, held_out: TokenRows, vocabulary: Vocabulary, seed: int
) -> WordLoss | None:
    """Return the loss of the masked tokens of `held_out` under the frequencies in `seen`.

    The masks are those of `seed`, the frequencies smoothed by absolute discounting. None if no
    token is masked or none was seen.
    """
    targets = mask_tokens(held_out, vocabulary, seed, 0).targets
    usable = seen.tokens[~np.isin(seen.tokens, vocabulary.special_ids)]
    if not len(targets) or not len(usable):
        return None
    counts = np.bincount(usable, minlength=vocabulary.size).astype(np.float64)
    left_over = _DISCOUNT * np.count_nonzero(counts) / len(usable)
    shares = np.maximum(counts - _DISCOUNT, 0) / len(usable) + left_over / vocabulary.size
    losses = -np.log(shares[targets])
    return WordLoss(float(losses.mean()), float(losses.std()), len(targets))
