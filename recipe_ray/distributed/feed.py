"""Batches for DDP workers: Ray Data reads the corpus's shards, the workers encode the samples.

In memory (the default): a worker encodes its share of the samples, the rows are exchanged, and all
hold the whole part, so that the global batches are those of one process. Streaming: the samples are
dealt out; a worker encodes as they come and keeps a shuffle buffer, no more.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import ray
import torch.distributed as dist
from ray.train import get_dataset_shard

from recipe_ray.base.errors import DataError, SpecError
from recipe_ray.data.batches import Collate, MemoryBatches, deal
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.feed import CHUNK, Part
from recipe_ray.data.rows import Encode
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.shards import Shards, shard
from recipe_ray.learn.loop import Batches
from recipe_ray.learn.objective import Batch
from recipe_ray.stages.location import open_files
from recipe_ray.stages.store import Store

BLOCK_BYTES = 4 * 2**20
SHUFFLE_ROWS = 4096  # samples in the buffer that a stream is shuffled in


@dataclass(frozen=True)
class Reading:
    """A part of a corpus that a stage will ask for; `name` is that of its Ray Data set."""

    name: str
    corpus: Corpus
    part: Part
    shards: Shards


def readings_of(
    corpora: list[tuple[Corpus, Part]], locations: Locations, store: Store
) -> tuple[Reading, ...]:
    """Shard what a stage reads; raises DataError where a corpus cannot be read or is empty."""
    readings = tuple(
        Reading(f"corpus-{number}", corpus, part, shard(corpus, locations, store))
        for number, (corpus, part) in enumerate(corpora)
    )
    for reading in readings:
        if not reading.shards.rows_of(reading.part):
            raise DataError(f"corpus {reading.corpus.label()}: no {reading.corpus.unit} left")
    return readings


def samples_of(reading: Reading, *, stream: bool) -> Any:
    """Return the samples and numbers of a part as a Ray Data set.

    A stream is read when workers ask for it, which needs a CPU that no worker holds: else it never
    starts. Otherwise it is read now, before the workers take the CPUs, into the object store.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # else a seed does not fix the shuffle
    # a worker holds whole blocks, and small shards are joined up to this size (default 128 MB)
    context.target_max_block_size = BLOCK_BYTES
    # the store's own file system: its URI may carry an endpoint or credentials
    filesystem, root = open_files(reading.shards.root)[0].arrow()
    paths = [f"{root}/{path}" for path in reading.shards.paths]
    dataset = ray.data.read_parquet(paths, filesystem=filesystem)
    rows = reading.shards.rows_of(reading.part)
    if len(rows) < reading.shards.num_samples:
        dataset = dataset.filter(expr=f"index >= {rows.start} and index < {rows.stop}")
    return dataset if stream else dataset.materialize()


@dataclass(frozen=True)
class RayFeed:
    """The feed of one DDP worker; all workers must ask it for the same, in the same order."""

    readings: tuple[Reading, ...]
    stream: bool

    def batches(
        self,
        corpus: Corpus,
        encode: Encode,
        collate: Collate,
        batch_size: int,
        seed: int,
        part: Part,
    ) -> Batches:
        """Return the batches of a part that the stage's `corpora` names."""
        wanted = (r for r in self.readings if r.corpus == corpus and r.part == part)
        reading = next(wanted, None)
        if reading is None:
            raise LookupError(f"the stage's corpora() does not name {corpus.label()} {part}")
        if not self.stream:
            return MemoryBatches(exchanged(reading, encode), collate, batch_size, seed)
        return StreamBatches(
            get_dataset_shard(reading.name),
            partial(encoded, corpus, encode),
            collate,
            batch_size,
            seed,
            len(reading.shards.rows_of(part)),
            dist.get_world_size(),
        )


def encoded(corpus: Corpus, encode: Encode, piece: Mapping[str, Any]) -> Any:
    """Return the rows of a piece of a corpus, as columns with the samples' numbers."""
    return encode(corpus.from_columns(piece), piece["index"])


def exchanged(reading: Reading, encode: Encode) -> Any:
    """Return the rows of a part in the order of the corpus, the same on every worker.

    Each worker sees all samples and encodes every `world size`-th chunk of them; all must call it.
    """
    rank, world_size = dist.get_rank(), dist.get_world_size()
    samples = get_dataset_shard(reading.name)
    mine = []
    for piece in samples.iter_batches(batch_size=CHUNK, batch_format="numpy"):
        wanted = piece["index"] // CHUNK % world_size == rank
        if wanted.any():
            chosen = {name: values[wanted] for name, values in piece.items()}
            mine.append(encoded(reading.corpus, encode, chosen))
    pieces: list[Any] = [None] * world_size
    dist.all_gather_object(pieces, mine)
    parts = [rows for worker in pieces for rows in worker]
    rows = type(parts[0]).joined(parts)
    return rows.take(np.argsort(rows.index, kind="stable"))


@dataclass(frozen=True)
class StreamBatches:
    """One worker's batches as its samples stream in: nothing is kept but the shuffle buffer.

    Workers get equally many samples, and so take equally many steps; which of them meet in a batch
    depends on the number of workers, unlike in memory.
    """

    samples: Any  # a Ray Data iterator over this worker's share
    encode: Callable[[Mapping[str, Any]], Any]  # columns of a piece -> rows
    collate: Collate
    batch_size: int
    seed: int
    num_samples: int
    world_size: int

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise SpecError(
                f"launch.stream: batch_size {self.batch_size} is no multiple of "
                f"{self.world_size} workers"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Global batches an epoch, the last one possibly short."""
        return -(-(self.num_samples // self.world_size) // self._share)

    @property
    def _share(self) -> int:
        return self.batch_size // self.world_size

    def epoch(self, epoch: int, rank: int, world_size: int, start: int) -> Iterator[Batch]:
        """Yield this worker's batches, encoded as they come; the first `start` are skipped."""
        assert world_size == self.world_size
        pieces = self.samples.iter_batches(
            batch_size=self._share,
            batch_format="numpy",
            local_shuffle_buffer_size=max(SHUFFLE_ROWS, 2 * self._share),
            local_shuffle_seed=int(np.random.default_rng((self.seed, epoch)).integers(1 << 31)),
        )
        for piece in islice(pieces, start, self.steps_per_epoch):
            rows = self.encode(piece)
            # one worker of one: only the order by length is wanted here
            yield self.collate(rows.take(deal(np.arange(len(rows)), rows.lengths, 0, 1)), epoch)
