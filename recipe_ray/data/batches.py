"""Batches from rows in memory: a seeded permutation an epoch, dealt out to workers by length.

The global batches depend on the seed alone, never on the number of workers, so that DDP with any
world size sees the same batches as one process.

From a corpus to batches: what a stage asks for, and the feed that needs no Ray.

A stage says which corpus, how samples become rows and rows become batches. `LocalFeed` does it in
this process; `recipe_ray.distributed.data` does it with Ray Data, through the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from recipe_ray.base.errors import DataError
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.rows import Encode, Ints, Rows
from recipe_ray.data.sources import Locations

if TYPE_CHECKING:
    from recipe_ray.learn.loop import Batches
    from recipe_ray.learn.objective import Batch

Collate = Callable[[Any, int], "Batch"]  # (rows, epoch) -> batch


@dataclass(frozen=True)
class MemoryBatches:
    """Global batches of `batch_size` rows; `collate` makes a batch of a worker's rows."""

    rows: Rows
    collate: Collate
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch, the last one possibly short."""
        return -(-len(self.rows) // self.batch_size)

    def epoch(
        self, epoch: int, rank: int, world_size: int, start: int, *, more: bool = False
    ) -> Iterator[Batch]:
        """Yield this worker's shares, as many for every worker."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        lengths = self.rows.lengths
        for first in range(start * self.batch_size, len(order), self.batch_size):
            share = deal(order[first : first + self.batch_size], lengths, rank, world_size)
            yield self.collate(self.rows.take(share), epoch)


def deal(rows: Ints, lengths: Ints, rank: int, world_size: int) -> Ints:
    """Return one worker's rows of a global batch, longest first.

    Rows go round the workers by falling length, there and back, so every worker has about the same
    tokens (always forth, the first would have the longer of every pair), and rows of like length
    lie together, which is what packed attention wants. Where rows are fewer than workers (an
    epoch's last batch) some are given twice: every worker must take the step.
    """
    by_length = rows[np.argsort(-lengths[rows], kind="stable")]
    if len(rows) < world_size:
        return by_length[rank % len(rows) :][:1]
    turn, seat = np.divmod(np.arange(len(rows)), world_size)
    share: Ints = by_length[np.where(turn % 2 == 0, seat, world_size - 1 - seat) == rank]
    return share


def by_tokens(lengths: Ints, max_tokens: int) -> Iterator[Ints]:
    """Yield row numbers in groups of falling length, each of at most `max_tokens` tokens."""
    order = np.argsort(-lengths, kind="stable")
    first, tokens = 0, 0
    for i, row in enumerate(order):
        if tokens + lengths[row] > max_tokens and i > first:
            yield order[first:i]
            first, tokens = i, 0
        tokens += int(lengths[row])
    if first < len(order):
        yield order[first:]


CHUNK = 2048


@dataclass(frozen=True)
class Part:
    """A half-open range of a corpus, as shares of it: training data, or what is held out of it."""

    start: float = 0.0
    stop: float = 1.0

    def of(self, count: int) -> slice:
        """Return the rows of a corpus with `count` samples."""
        return slice(round(self.start * count), round(self.stop * count))


class Feed(Protocol):
    """Where batches come from."""

    def batches(
        self,
        corpus: Corpus,
        encode: Encode,
        collate: Collate,
        batch_size: int,
        seed: int,
        part: Part,
    ) -> Batches:
        """Return the batches of a part of a corpus; raise DataError where it is empty."""
        ...


@dataclass(frozen=True)
class LocalFeed:
    """Reads and encodes in this process, into memory."""

    locations: Locations

    def batches(
        self,
        corpus: Corpus,
        encode: Encode,
        collate: Collate,
        batch_size: int,
        seed: int,
        part: Part,
    ) -> MemoryBatches:
        """Encode the corpus once and keep its rows."""
        rows = encode_all(corpus, self.locations, encode, part)
        return MemoryBatches(rows, collate, batch_size, seed)


def encode_all(
    corpus: Corpus,
    locations: Locations,
    encode: Encode,
    part: Part,
    limit: int | None = None,
) -> Any:
    """Encode a part of a corpus, chunk by chunk; a sample keeps its number in the whole corpus.

    Of the part at most the first `limit` samples. Raises DataError where the part is empty.
    """
    everything = list(corpus.samples(locations))
    whole = part.of(len(everything))
    wanted = whole if limit is None else slice(whole.start, min(whole.stop, whole.start + limit))
    numbers = np.arange(len(everything), dtype=np.int64)[wanted]
    chosen = everything[wanted]
    if not chosen:
        raise DataError(
            f"corpus {corpus.label()}: no {corpus.unit} left of {len(everything)} in the part from "
            f"{part.start:.0%} to {part.stop:.0%}; give more {corpus.unit}s"
        )
    parts = [
        encode(chosen[first : first + CHUNK], numbers[first : first + CHUNK])
        for first in range(0, len(chosen), CHUNK)
    ]
    return type(parts[0]).joined(parts)
