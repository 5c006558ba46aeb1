"""Feeding DDP workers: shards of a corpus, shares of batches, streams of bounded memory."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sweep_samples import EXPERIMENT

from recipe_ray.data.batches import Part, deal
from recipe_ray.data.corpora import OwnText, WikiText
from recipe_ray.data.rows import Ints, TokenRows
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.data import Shards, shard
from recipe_ray.experiment.plan import make_plan
from recipe_ray.experiment.spec import Experiment
from recipe_ray.store.store import Store

HALF = Part(0.0, 0.5)


def _sharded(folder: Path, num_texts: int, a_shard: int, length: int = 8) -> Shards:
    source = folder / "texts.txt"
    texts = (f"{number:08d}".ljust(length, "x") + "\n" for number in range(num_texts))
    source.write_text("".join(texts))
    corpus = OwnText(path=str(source), size=None)
    return shard(corpus, Locations(None, folder), Store.open(folder / "store"), a_shard)


def test_shards_hold_the_corpus_in_order_and_are_written_once(
    locations: Locations, tmp_path: Path
) -> None:
    store, corpus = Store.open(tmp_path), WikiText(size=50)
    shards = shard(corpus, locations, store, 20)
    times = [(tmp_path / path).stat().st_mtime_ns for path in shards.paths]
    texts = [
        text for path in shards.paths for text in pq.read_table(tmp_path / path)["text"].to_pylist()
    ]
    assert texts == list(corpus.samples(locations))
    assert shard(corpus, locations, store, 20) == shards
    assert [(tmp_path / path).stat().st_mtime_ns for path in shards.paths] == times


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("stream", [False, True])
def test_ray_data_reads_every_text_of_a_part_once(tmp_path: Path, stream: bool) -> None:
    from recipe_ray.distributed.data import Reading, samples_of

    shards = _sharded(tmp_path, 101, 10)
    reading = Reading("corpus", OwnText(path="texts.txt"), HALF, shards)
    read = samples_of(reading, stream=stream).take_all()
    assert sorted(row["index"] for row in read) == list(range(50))
    assert all(int(row["text"][:8]) == row["index"] for row in read)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 7])
def test_every_worker_gets_a_share_of_every_batch(num_rows: int) -> None:
    rows, lengths = np.arange(num_rows), np.arange(10, 10 + num_rows)
    shares = [deal(rows, lengths, rank, 3) for rank in range(3)]
    assert all(len(share) for share in shares)
    assert set(np.concatenate(shares)) == set(range(num_rows))


@pytest.mark.usefixtures("ray_session")
def test_a_stream_gives_every_text_once_an_epoch_in_a_seeded_order(tmp_path: Path) -> None:
    shards = _sharded(tmp_path, 300, 50)
    first, again, other = (_order(shards, epoch) for epoch in (0, 0, 1))
    assert sorted(first) == sorted(other) == list(range(300))
    assert first == again != other
    assert _order(shards, 0, start=10) == first[80:]


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_the_memory_of_a_stream_does_not_grow_with_the_shards(tmp_path: Path) -> None:
    import ray

    # 5 MB a shard, two are more than the buffer holds; kept, 18 more would take 90 MB
    peaks = []
    for num_shards in (2, 20):
        folder = tmp_path / str(num_shards)
        folder.mkdir()
        shards = _sharded(folder, num_shards * 5000, 5000, length=1000)
        task: Any = ray.remote(num_cpus=1, max_calls=1)(_peak_mb)
        peaks.append(ray.get(task.remote(shards)))
    assert peaks[1] - peaks[0] < 45, peaks


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_two_workers_train_on_a_stream(few_texts: Locations, tmp_path: Path) -> None:
    from recipe_ray.distributed.sweep import sweep

    launch = {"stream": True, "workers": {"pretrain": 2}}
    plan = make_plan(Experiment.model_validate({**EXPERIMENT, "launch": launch}), few_texts)
    pretrain = plan.cells[0].stages[0]
    only = replace(plan, cells=(), stages={pretrain.key: pretrain})
    store = Store.open(tmp_path)
    assert sweep(only, store, few_texts).done == (pretrain.key,)
    assert store.manifest(pretrain.artifact)["world_size"] == 2


def _two_tokens(texts: Sequence[str], index: Ints) -> TokenRows:
    rows = TokenRows.of([[1, 2]] * len(texts))
    return TokenRows(rows.tokens, rows.offsets, index)


def _as_is(rows: TokenRows, epoch: int) -> Any:
    return rows


def _stream(shards: Shards) -> Any:
    from recipe_ray.distributed.data import Reading, encoded, samples_of
    from recipe_ray.distributed.stream import StreamBatches

    reading = Reading("corpus", OwnText(path="texts.txt"), Part(), shards)
    texts = samples_of(reading, stream=True).iterator()
    return StreamBatches(
        texts, partial(encoded, reading.corpus, _two_tokens), _as_is, 8, 0, shards.num_samples, 1
    )


def _order(shards: Shards, epoch: int, start: int = 0) -> list[int]:
    batches: Any = _stream(shards).epoch(epoch, 0, 1, start)
    return [int(number) for rows in batches for number in rows.index]


def _peak_mb(shards: Shards) -> float:
    peak = 0.0
    for _ in _stream(shards).epoch(0, 0, 1, 0):
        # resident pages without those shared with the object store
        resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        peak = max(peak, (resident - shared) * 4096 / 1e6)
    return peak
