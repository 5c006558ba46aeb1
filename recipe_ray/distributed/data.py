"""Batches for DDP workers, by Ray Data from a corpus's shards.

Who encodes. Texts are encoded by the training workers, since tokenising is cheaper than moving its
result. Images are encoded by Ray Data's own tasks (`made`), so that decoding takes no time of the
training workers. Such tasks run on all CPUs that no worker holds. One CPU is kept for them
(`resources.DATA_CPUS`); a cluster with more free CPUs decodes faster.

In memory (the default) all workers hold all rows of a part (for images their pixels, uint8), so
that the global batches are those of one process. Of texts each worker encodes a share, and the rows
are exchanged. Batches are made, and images augmented, in the training loop.

Streaming (`launch.stream`): the samples are dealt out, and a worker keeps only a shuffle buffer
(`shuffle`). The rest of the work on a batch (tokenise, augment, put on patches, make tensors)
happens in threads next to the training loop, some batches ahead (`stream`).

A corpus is kept as Parquet shards in the store, written once, so that every node reads the same
rows.

    <store>/corpora/<key>/00000.parquet ...  column `index` (number in the corpus), and
                                            the corpus's own: `text`, or `image` and more
    <store>/corpora/<key>/shards.json        written last: how many shards and samples

The key is that of the corpus's content, so two writers at once write the same. Shards need no Ray.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch.distributed as dist
from ray.data.expressions import col
from ray.train import get_dataset_shard

from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.data.batches import CHUNK, Feed, MemoryBatches, Part, Wanted
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.rows import Encode
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.stream import StreamBatches
from recipe_ray.learn.loop import Batches
from recipe_ray.store.remote import reopen_files
from recipe_ray.store.store import Store

SAMPLES_A_SHARD = 2048
SAMPLES_A_GROUP = 512
_FOLDER, _LIST = "corpora", "shards.json"
_LAYOUT = 2  # version of the folder's files; another layout is another folder, in old stores too


@dataclass(frozen=True)
class Shards:
    """A corpus's shards: the store's root, the folder in it, how many shards and samples."""

    root: str
    folder: str
    num_shards: int
    num_samples: int
    samples_a_shard: int = SAMPLES_A_SHARD

    @property
    def paths(self) -> list[str]:
        """The shards' paths in the store."""
        return [_path(self.folder, number) for number in range(self.num_shards)]

    def rows_of(self, part: Part) -> range:
        """Return the numbers of the samples in a part of the corpus."""
        return range(self.num_samples)[part.of(self.num_samples)]

    def first_sample(self) -> dict[str, list[Any]]:
        """Return the columns of the first sample."""
        filesystem, root = reopen_files(self.root).arrow()
        with filesystem.open_input_file(f"{root}/{self.paths[0]}") as file:
            first = next(pq.ParquetFile(file).iter_batches(batch_size=1, use_threads=False))
        columns: dict[str, list[Any]] = first.to_pydict()
        return columns

    def pieces(self, part: Part, rank: int, world_size: int) -> Iterator[dict[str, Any]]:
        """Yield the columns of every `world_size`-th piece of a part; other shards are not read."""
        filesystem, root = reopen_files(self.root).arrow()
        wanted, number = self.rows_of(part), 0
        for shard in _shards_of(wanted, self.samples_a_shard):
            with filesystem.open_input_file(f"{root}/{self.paths[shard]}") as file:
                pieces = pq.ParquetFile(file).iter_batches(SAMPLES_A_GROUP, use_threads=False)
                for piece in pieces:
                    index = piece["index"].to_numpy()
                    chosen = piece.filter(pa.array(np.isin(index, wanted)))
                    if chosen.num_rows and number % world_size == rank:
                        yield {**chosen.to_pydict(), "index": chosen["index"].to_numpy()}
                    number += 1


def _shards_of(samples: range, samples_a_shard: int) -> range:
    return range(samples.start // samples_a_shard, -(-samples.stop // samples_a_shard))


def shard(
    corpus: Corpus, locations: Locations, store: Store, samples_a_shard: int = SAMPLES_A_SHARD
) -> Shards:
    """Return the shards of a corpus, written first if the store lacks them.

    Raises DataError if the corpus cannot be read.
    """
    files = reopen_files(store.uri)
    folder = f"{_FOLDER}/{fingerprint([_LAYOUT, corpus.identity_at(locations), samples_a_shard])}"
    listed = files.read(f"{folder}/{_LIST}")
    if listed is None:
        num_shards = num_samples = 0
        for samples in _in_groups(corpus.samples(locations), samples_a_shard):
            columns = corpus.to_columns(samples)
            files.write(_path(folder, num_shards), _encoded(columns, num_samples, len(samples)))
            num_shards, num_samples = num_shards + 1, num_samples + len(samples)
        listed = json.dumps({"num_shards": num_shards, "num_samples": num_samples}).encode()
        files.write(f"{folder}/{_LIST}", listed)
    counts = json.loads(listed)
    return Shards(store.uri, folder, counts["num_shards"], counts["num_samples"], samples_a_shard)


def _in_groups(samples: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(samples)
    while group := list(islice(remaining, size)):
        yield group


def _encoded(columns: dict[str, pa.Array], first: int, count: int) -> bytes:
    numbers = pa.array(range(first, first + count), pa.int64())
    sink = pa.BufferOutputStream()
    # row groups are what a reader holds at once
    pq.write_table(pa.table({"index": numbers, **columns}), sink, row_group_size=SAMPLES_A_GROUP)
    return bytes(sink.getvalue())


def _path(folder: str, number: int) -> str:
    return f"{folder}/{number:05d}.parquet"


BLOCK_BYTES = 4 * 2**20
MADE_ROWS = 64  # images that a task of Ray Data decodes at once


@dataclass(frozen=True)
class Making:
    """How Ray Data makes rows of raw samples, of which class, and how large one is."""

    encode: Encode
    rows: Any  # the class, which has `to_columns` and `from_columns`
    row_bytes: int


@dataclass(frozen=True)
class Reading:
    """A part of a corpus that a stage will ask for; `name` is that of its Ray Data set."""

    name: str
    corpus: Corpus
    part: Part
    shards: Shards
    making: Making | None = None  # None: the training workers encode


def readings_of(
    corpora: list[tuple[Corpus, Part]],
    locations: Locations,
    store: Store,
    encode: Encode | None = None,
) -> tuple[Reading, ...]:
    """Shard what a stage reads; with `encode` Ray Data makes the rows.

    Raises DataError if a corpus cannot be read, is empty, or its first sample is not valid.
    """
    readings = []
    for number, (corpus, part) in enumerate(corpora):
        shards = shard(corpus, locations, store)
        part.check(shards.num_samples, corpus)
        making = None if encode is None else making_of(corpus, shards, encode)
        readings.append(Reading(f"corpus-{number}", corpus, part, shards, making))
    return tuple(readings)


def making_of(corpus: Corpus, shards: Shards, encode: Encode) -> Making:
    """Return how rows are made, having made the corpus's first."""
    rows = encoded(corpus, encode, shards.first_sample())
    return Making(encode, type(rows), sum(column.nbytes for column in rows.to_columns().values()))


def samples_of(reading: Reading, *, stream: bool) -> Any:
    """Return the samples and numbers of a part as a Ray Data set.

    A stream is read when workers ask for it. This needs a CPU that no worker holds: else it never
    starts. Otherwise it is read now, before the workers take the CPUs, into the object store.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True  # otherwise a seed does not fix the shuffle
    # the newer reader starts twenty processes to read the ends of our few files, and a second task
    # next to the one that reads and decodes, for which there is no CPU
    context.use_datasource_v2 = False
    context.raise_original_map_exception = True  # an invalid image gets our own error message
    # a worker holds whole blocks, and small shards are joined up to this size (default 128 MB)
    context.target_max_block_size = BLOCK_BYTES
    # the store's own file system: its URI may carry an endpoint or credentials
    filesystem, root = reopen_files(reading.shards.root).arrow()
    paths = [f"{root}/{path}" for path in reading.shards.paths]
    dataset = ray.data.read_parquet(paths, filesystem=filesystem)
    rows = reading.shards.rows_of(reading.part)
    if len(rows) < reading.shards.num_samples:
        dataset = dataset.filter(expr=(col("index") >= rows.start) & (col("index") < rows.stop))
    if reading.making is not None:
        make: Any = partial(made, reading.corpus, reading.making.encode)
        dataset = dataset.map_batches(make, batch_size=MADE_ROWS, batch_format="numpy")
    return dataset if stream else dataset.materialize()


@dataclass(frozen=True)
class RayFeed(Feed):
    """The feed of one DDP worker; all workers must ask it for the same, in the same order."""

    readings: tuple[Reading, ...]
    stream: bool

    def batches_of(self, wanted: Wanted) -> Batches:
        """Return the batches of a part that the stage's `corpora` names."""
        corpus, encode, part = wanted.corpus, wanted.encode, wanted.part
        fitting = (r for r in self.readings if r.corpus == corpus and r.part == part)
        reading = next(fitting, None)
        if reading is None:
            raise LookupError(f"the stage's corpora() does not name {corpus.label()} {part}")
        making = reading.making
        if making is not None and making.encode != encode:
            raise LookupError(f"Ray Data made rows with {making.encode}, asked for are {encode}")
        if not self.stream:
            whole = exchanged(reading, encode) if making is None else gathered(reading, making)
            return MemoryBatches(whole, wanted.collate, wanted.batch_size, wanted.seed)
        rows_of = partial(encoded, corpus, encode) if making is None else making.rows.from_columns
        return StreamBatches(
            get_dataset_shard(reading.name),
            rows_of,
            wanted.collate,
            wanted.batch_size,
            wanted.seed,
            len(reading.shards.rows_of(part)),
            dist.get_world_size(),
            making.row_bytes if making is not None else 0,
        )

    def rows(self, corpus: Corpus, encode: Encode, part: Part) -> Any:
        """Return the rows of any part of a corpus that the stage's `corpora` names.

        They are read from its shards, even if it streams: each worker encodes its share of them.
        """
        shards = next((r.shards for r in self.readings if r.corpus == corpus), None)
        if shards is None:
            raise LookupError(f"the stage's corpora() does not name {corpus.label()}")
        part.check(shards.num_samples, corpus)
        pieces = shards.pieces(part, dist.get_rank(), dist.get_world_size())
        return _of_all_workers([encoded(corpus, encode, piece) for piece in pieces])


def encoded(corpus: Corpus, encode: Encode, piece: Mapping[str, Any]) -> Any:
    """Return the rows of a piece of a corpus, as columns with the samples' numbers."""
    return encode(corpus.from_columns(piece), piece["index"])


def made(corpus: Corpus, encode: Encode, piece: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rows of a piece of a corpus as columns; runs in a task of Ray Data."""
    columns: dict[str, Any] = encoded(corpus, encode, piece).to_columns()
    return columns


def gathered(reading: Reading, making: Making) -> Any:
    """Return all rows that Ray Data made of a part, in the order of the corpus."""
    pieces = get_dataset_shard(reading.name).iter_batches(batch_size=CHUNK, batch_format="numpy")
    return _in_order(making.rows.joined([making.rows.from_columns(piece) for piece in pieces]))


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
    return _of_all_workers(mine)


def _of_all_workers(mine: list[Any]) -> Any:
    pieces: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(pieces, mine)
    parts = [rows for worker in pieces for rows in worker]
    return _in_order(type(parts[0]).joined(parts))


def _in_order(rows: Any) -> Any:
    ordered = bool((np.diff(rows.index) > 0).all())  # then a copy of all pixels is spared
    return rows if ordered else rows.take(np.argsort(rows.index, kind="stable"))
