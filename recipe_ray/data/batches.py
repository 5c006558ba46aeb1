"""From a corpus to batches: a seeded permutation per epoch, dealt out to workers by length.

The global batches depend only on the seed, never on the number of workers, so that DDP with any
world size sees the same batches as one process. A stage says which corpus is read, how samples
become rows, and how rows become batches. `LocalFeed` does this in this process;
`recipe_ray.distributed.data` does it with Ray Data, through the same functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_ray.base.errors import DataError
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.sources import Locations

if TYPE_CHECKING:
    from recipe_ray.data.rows import Encode, Ints, Rows
    from recipe_ray.learn.loop import Batches
    from recipe_ray.learn.objective import Batch
    from recipe_ray.learn.runtime import Runtime

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
        """Global batches per epoch, the last one possibly short."""
        return -(-len(self.rows) // self.batch_size)

    def epoch(
        self, epoch: int, rank: int, world_size: int, start: int, *, more: bool = False
    ) -> Iterator[Batch]:
        """Yield this worker's shares, as many for every worker."""
        import numpy as np

        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.rows))
        lengths = self.rows.lengths
        for first in range(start * self.batch_size, len(order), self.batch_size):
            share = deal(order[first : first + self.batch_size], lengths, rank, world_size)
            yield self.collate(self.rows.take(share), epoch)


def deal(rows: Ints, lengths: Ints, rank: int, world_size: int) -> Ints:
    """Return one worker's rows of a global batch, longest first.

    Rows go round the workers by falling length, forth and back, so every worker has about the same
    tokens (always forth, the first would have the longer of every pair), and rows of like length
    are together, as packed attention needs. If there are fewer rows than workers (an
    epoch's last batch) some are given twice: every worker must take the step.
    """
    import numpy as np

    by_length = rows[np.argsort(-lengths[rows], kind="stable")]
    if len(rows) < world_size:
        return by_length[rank % len(rows) :][:1]
    turn, seat = np.divmod(np.arange(len(rows)), world_size)
    share: Ints = by_length[np.where(turn % 2 == 0, seat, world_size - 1 - seat) == rank]
    return share


def by_tokens(lengths: Ints, max_tokens: int) -> Iterator[Ints]:
    """Yield row numbers in groups of falling length, each of at most `max_tokens` tokens."""
    import numpy as np

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
    """A half-open range of a corpus, as shares of it: training data, or what is held out of it.

    Of that range only the first `most` samples; None: all of it.
    """

    start: float = 0.0
    stop: float = 1.0
    most: int | None = None

    def of(self, count: int) -> slice:
        """Return the rows of a corpus with `count` samples."""
        start, stop = round(self.start * count), round(self.stop * count)
        return slice(start, stop if self.most is None else min(stop, start + self.most))

    def check(self, count: int, corpus: Corpus) -> None:
        """Raise DataError if this part of a corpus with `count` samples is empty."""
        chosen = self.of(count)
        if chosen.start >= chosen.stop:
            raise DataError(
                f"corpus {corpus.label()}: none of its {count} {corpus.unit}s lies in the part "
                f"from {self.start:.0%} to {self.stop:.0%}; give more {corpus.unit}s"
            )


@dataclass(frozen=True)
class Wanted:
    """A request for batches: from what, how samples become rows, and how rows become a batch."""

    corpus: Corpus
    encode: Encode
    collate: Collate
    batch_size: int
    seed: int
    part: Part


class Feed(ABC):
    """The source of batches, and of rows for measurements. Nothing else reads a corpus."""

    def batches(
        self,
        corpus: Corpus,
        encode: Encode,
        collate: Collate,
        batch_size: int,
        seed: int,
        part: Part,
    ) -> Batches:
        """Return the batches of a part of a corpus; raise DataError if it is empty."""
        return self.batches_of(Wanted(corpus, encode, collate, batch_size, seed, part))

    @abstractmethod
    def batches_of(self, wanted: Wanted) -> Batches:
        """Return the batches that are asked for; raise DataError if the part is empty."""

    @abstractmethod
    def rows(self, corpus: Corpus, encode: Encode, part: Part) -> Any:
        """Return all rows of a part, in the order of the corpus, the same on every worker.

        All workers must ask for the same. Raises DataError if the part is empty.
        """


@dataclass(frozen=True)
class Workbench:
    """What an attack or a defense works with; every worker has its own."""

    feed: Feed  # the only way to a corpus
    runtime: Runtime
    seed: int
    cache_dir: Path | None = None  # keeps what must be fetched besides corpora; None: nowhere
    # what is to be kept in the results besides losses: metric, value, epoch or round
    kept: list[tuple[str, float, int]] = field(default_factory=list)


@dataclass(frozen=True)
class LocalFeed(Feed):
    """Reads and encodes in this process, into memory.

    A corpus is read once: its raw samples are kept until another corpus is asked for.
    """

    locations: Locations
    _kept: list[tuple[Corpus, list[Any]]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def batches_of(self, wanted: Wanted) -> MemoryBatches:
        """Encode the corpus once and keep its rows."""
        rows = self.rows(wanted.corpus, wanted.encode, wanted.part)
        return MemoryBatches(rows, wanted.collate, wanted.batch_size, wanted.seed)

    def rows(self, corpus: Corpus, encode: Encode, part: Part) -> Any:
        """Encode a part, chunk by chunk; a sample keeps its number in the whole corpus."""
        import numpy as np

        samples = self._samples(corpus)
        part.check(len(samples), corpus)
        wanted = part.of(len(samples))
        numbers = np.arange(wanted.start, wanted.stop, dtype=np.int64)
        chosen = samples[wanted]
        parts = [
            encode(chosen[first : first + CHUNK], numbers[first : first + CHUNK])
            for first in range(0, len(chosen), CHUNK)
        ]
        return type(parts[0]).joined(parts)

    def count(self, corpus: Corpus) -> int:
        """Return how many samples a corpus has."""
        return len(self._samples(corpus))

    def _samples(self, corpus: Corpus) -> list[Any]:
        if not self._kept or self._kept[0][0] != corpus:
            self._kept[:] = [(corpus, list(corpus.samples(self.locations)))]
        return self._kept[0][1]
