"""Masks of a masked language model (docs/method.md section 2): 15 % of the tokens, 80/10/10."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recipe_ray.data.rows import Ints
from recipe_ray.data.tokens import TokenRows, uniform

MASKED_SHARE = 0.15


@dataclass(frozen=True)
class Vocabulary:
    """What masking has to know of a tokenizer."""

    size: int
    mask_id: int
    special_ids: tuple[int, ...]


@dataclass(frozen=True)
class MaskedTokens:
    """Corrupted tokens [T], where the loss is taken [M] (indices into T), true ids there [M]."""

    tokens: Ints
    where: Ints
    targets: Ints


def mask_tokens(rows: TokenRows, vocabulary: Vocabulary, seed: int, epoch: int) -> MaskedTokens:
    """Choose 15 % of the non-special tokens: 80 % become the mask, 10 % a random token, 10 % stay.

    Static masks (the authors' script draws them once) are those of a constant `epoch`.
    """
    keys = (np.repeat(rows.index, rows.lengths), rows.positions, np.full(len(rows.tokens), epoch))
    eligible = ~np.isin(rows.tokens, vocabulary.special_ids)
    chosen = eligible & (uniform(seed, "choose", *keys) < MASKED_SHARE)
    fate = uniform(seed, "fate", *keys)
    random_ids = (uniform(seed, "random", *keys) * vocabulary.size).astype(np.int64)
    tokens = _replace(rows.tokens, chosen & (fate < 0.8), vocabulary.mask_id)
    tokens = _replace(tokens, chosen & (fate >= 0.9), random_ids)
    where = np.flatnonzero(chosen)
    return MaskedTokens(tokens, where, rows.tokens[where])


def _replace(tokens: Ints, where: NDArray[np.bool_], value: Ints | int) -> Ints:
    return np.where(where, value, tokens)
