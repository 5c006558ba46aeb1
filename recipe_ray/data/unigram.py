"""The masked-LM loss that word frequencies alone give: what a head must beat."""

import math
from dataclasses import dataclass

import numpy as np

from recipe_ray.data.masking import Vocabulary, mask_tokens
from recipe_ray.data.tokens import TokenRows

_DISCOUNT = 0.75  # taken off every count for tokens not seen (Ney, Essen and Kneser 1994)


@dataclass(frozen=True)
class WordLoss:
    """Mean loss (nats a masked token) of guessing by frequency, and its spread over tokens."""

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

    The masks are those of `seed`, the frequencies smoothed by absolute discounting. None where no
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
