"""From a corpus to batches: what a stage asks for, and the feed that needs no Ray.

A stage says which corpus, how texts become rows and how rows become batches. `LocalFeed` does it in
this process; `recipe_ray.distributed.feed` does it with Ray Data, through the same functions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from recipe_ray.base.errors import DataError
from recipe_ray.data.batches import Collate, MemoryBatches
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.sources import Locations
from recipe_ray.data.tokens import Ints, TokenRows, concatenate
from recipe_ray.learn.loop import Batches

# (texts, their numbers in the corpus [N]) -> rows; picklable, since Ray Data runs it elsewhere
Encode = Callable[[Sequence[str], Ints], TokenRows]
CHUNK = 2048


@dataclass(frozen=True)
class Part:
    """A half-open range of a corpus, as shares of it: training data, or what is held out of it."""

    start: float = 0.0
    stop: float = 1.0

    def of(self, count: int) -> slice:
        """Return the rows of a corpus with `count` texts."""
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
        rows = encode_all(corpus.texts(self.locations), encode, part)
        if not len(rows):
            raise DataError(f"corpus {corpus.label()}: no text left to train on")
        return MemoryBatches(rows, collate, batch_size, seed)


def encode_all(texts: Iterator[str], encode: Encode, part: Part) -> TokenRows:
    """Encode a part of the texts, chunk by chunk; a text keeps its number in the whole corpus."""
    everything = list(texts)
    wanted = part.of(len(everything))
    numbers = np.arange(len(everything), dtype=np.int64)[wanted]
    chosen = everything[wanted]
    parts = [
        encode(list(islice(chosen, first, first + CHUNK)), numbers[first : first + CHUNK])
        for first in range(0, len(chosen), CHUNK)
    ]
    return concatenate(parts) if parts else TokenRows.of([])
