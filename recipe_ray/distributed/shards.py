"""A corpus as Parquet shards in the store, written once, so that every node reads the same rows.

    <store>/corpora/<key>/00000.parquet ...  column `index` (number in the corpus), and
                                            the corpus's own: `text`, or `image` and more
    <store>/corpora/<key>/shards.json        written last: how many shards and samples

The key is that of the corpus's content, so two writers at once write the same. Free of Ray.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.feed import Part
from recipe_ray.data.sources import Locations
from recipe_ray.stages.location import reopen_files
from recipe_ray.stages.store import Store

SAMPLES_A_SHARD = 2048
SAMPLES_A_GROUP = 512
_FOLDER, _LIST = "corpora", "shards.json"
_LAYOUT = 2  # of the folder's files; another layout is another folder, in old stores too


@dataclass(frozen=True)
class Shards:
    """A corpus's shards: the store's root, the folder in it, how many shards and samples."""

    root: str
    folder: str
    num_shards: int
    num_samples: int

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


def shard(
    corpus: Corpus, locations: Locations, store: Store, samples_a_shard: int = SAMPLES_A_SHARD
) -> Shards:
    """Return the shards of a corpus, written first where the store lacks them.

    Raises DataError where the corpus cannot be read.
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
    return Shards(store.uri, folder, counts["num_shards"], counts["num_samples"])


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
