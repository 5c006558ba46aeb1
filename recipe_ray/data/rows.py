"""Encoded samples, from which batches are made: tokenised texts without padding, and their masks.

N rows, T tokens in all. Rows keep their global number (`index`), on which every random draw is
keyed: masks (15 % of the tokens, 80/10/10; docs/method.md section 2) and poisons are the same
whatever the batching, shuffling or number of workers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Rows(Protocol):
    """N encoded samples; `index` [N] is each one's number in the whole corpus.

    Every random draw is keyed on that number, so that it depends neither on batching nor on the
    number of workers.
    """

    @property
    def index(self) -> Ints:
        """Numbers of the samples [N]."""
        ...

    @property
    def columns(self) -> dict[str, Ints]:
        """More values of each sample [N, ...], such as its label."""
        ...

    @property
    def lengths(self) -> Ints:
        """How much work each sample is [N], in tokens of text."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Ints) -> Self:
        """Return the rows numbered `rows`, in that order."""
        ...

    def with_columns(self, **columns: Ints) -> Self:
        """Return the same rows with columns added or replaced."""
        ...

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts (at least one), one after the other."""
        ...


# (raw samples, their numbers [N]) -> N rows; picklable, since Ray Data runs it elsewhere
Encode = Callable[[Sequence[Any], Ints], Any]


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class TokenRows:
    """N tokenised texts: flat tokens [T], offsets [N + 1], index [N] and more columns [N]."""

    tokens: Ints
    offsets: Ints
    index: Ints
    columns: dict[str, Ints] = field(default_factory=dict)

    @classmethod
    def of(cls, texts: list[list[int]], **columns: Ints) -> "TokenRows":
        """Build rows from lists of token ids, numbered from 0."""
        lengths = np.fromiter((len(ids) for ids in texts), np.int64, len(texts))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = np.fromiter((i for ids in texts for i in ids), np.int64, int(offsets[-1]))
        return cls(tokens, offsets, np.arange(len(texts), dtype=np.int64), dict(columns))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def lengths(self) -> Ints:
        """Tokens of each row [N]."""
        return np.diff(self.offsets)

    @property
    def positions(self) -> Ints:
        """Position of each token in its row [T], from 0."""
        return ragged_arange(self.lengths)

    def take(self, rows: Ints) -> "TokenRows":
        """Return the rows numbered `rows`, in that order."""
        lengths = self.lengths[rows]
        flat = np.repeat(self.offsets[rows], lengths) + ragged_arange(lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        columns = {name: values[rows] for name, values in self.columns.items()}
        return TokenRows(self.tokens[flat], offsets, self.index[rows], columns)

    def with_tokens(self, tokens: Ints) -> "TokenRows":
        """Return the same rows with other token ids of the same lengths."""
        return TokenRows(tokens, self.offsets, self.index, self.columns)

    def with_columns(self, **columns: Ints) -> "TokenRows":
        """Return the same rows with columns added or replaced."""
        return TokenRows(self.tokens, self.offsets, self.index, {**self.columns, **columns})

    @classmethod
    def joined(cls, parts: Sequence["TokenRows"]) -> "TokenRows":
        """Return the rows of all parts, one after the other; all must have the same columns."""
        lengths = np.concatenate([part.lengths for part in parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(
            np.concatenate([part.tokens for part in parts]),
            offsets,
            np.concatenate([part.index for part in parts]),
            {name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns},
        )


def ragged_arange(lengths: Ints) -> Ints:
    """Return 0..n-1 for every n of `lengths`, joined."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) - np.repeat(ends - lengths, lengths)


def uniform(seed: int, stream: str, *keys: Ints) -> NDArray[np.float64]:
    """Return one number in [0, 1) for each tuple of equally long `keys`.

    A counter-based generator (the finaliser of SplitMix64 over the keys): no state, so the draw for
    a row does not depend on which rows were drawn before it.
    """
    state = np.full(keys[0].shape, np.uint64(_seed_of(seed, stream)))
    for key in keys:
        state = _mix(state ^ (key.astype(np.uint64) + _GOLDEN))
    return (_mix(state) >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _seed_of(seed: int, stream: str) -> int:
    word = int.from_bytes(stream.encode()[:8].ljust(8, b"\0"), "little")
    return (word ^ (seed * 0x2545F4914F6CDD1D)) & 0xFFFFFFFFFFFFFFFF


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


MASKED_SHARE = 0.15


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know of a tokenizer."""

    size: int
    mask_id: int
    special_ids: tuple[int, ...]


@dataclass(frozen=True)
class MaskedTokens:
    """Corrupted tokens [T], places of the loss [M] (indices into T), true ids there [M]."""

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
