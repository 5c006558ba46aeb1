"""From a corpus to batches: what a stage asks for, and the feed that needs no Ray.

A stage says which corpus, how samples become rows and rows become batches. `LocalFeed` does it in
this process; `recipe_ray.distributed.feed` does it with Ray Data, through the same functions.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from recipe_ray.base.errors import DataError
from recipe_ray.data.batches import Collate, MemoryBatches
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.rows import Encode
from recipe_ray.data.sources import Locations
from recipe_ray.learn.loop import Batches

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
