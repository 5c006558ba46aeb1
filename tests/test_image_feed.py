"""Images to DDP workers: decoded by Ray Data, streamed in bounded memory, augmented the same."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import as_parquet
from image_samples import SIZE, TINY_VGG, labelled_samples
from samples import raised_by
from torch import Tensor

from recipe_ray.base.errors import DataError, NonFiniteLossError
from recipe_ray.data.batches import LocalFeed, Part
from recipe_ray.data.corpora import OwnImages
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.images import ImageBatch, ImageEncoder, ImageRows, ImageSample, batch_of
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.data import shard
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.store.store import Store

AUGMENT_SEED = 3
ENCODE = ImageEncoder(SIZE)


def corpus_of(folder: Path, count: int, samples: list[ImageSample] | None = None) -> Corpus:
    """Write images as a corpus of the user's own; return it."""
    folder.mkdir(exist_ok=True)
    file = as_parquet(folder / "images.parquet", samples or labelled_samples(count))
    return OwnImages(path=str(file))


def reading_of(folder: Path, corpus: Corpus, a_shard: int, size: int = SIZE) -> Any:
    """Shard a corpus for a stage whose model reads images of `size`."""
    from recipe_ray.distributed.data import Reading, making_of

    shards = shard(corpus, Locations(None, folder), Store.open(folder / "store"), a_shard)
    making = making_of(corpus, shards, ImageEncoder(size))
    return Reading("corpus-0", corpus, Part(), shards, making)


def with_numbers(rows: ImageRows, epoch: int) -> tuple[np.ndarray, ImageBatch]:
    """Collate with augmentation, and keep the images' numbers."""
    return rows.index, batch_of(rows, augment=(AUGMENT_SEED, epoch))


def stream(reading: Any, samples: Any, batch_size: int = 8, world_size: int = 1) -> Any:
    """Return the batches of one worker's share."""
    from recipe_ray.distributed.stream import StreamBatches

    return StreamBatches(
        samples,
        reading.making.rows.from_columns,
        with_numbers,
        batch_size,
        0,
        reading.shards.num_samples,
        world_size,
        reading.making.row_bytes,
    )


def pixels_by_number(batches: Any) -> dict[int, Tensor]:
    """Return every image of some batches by its number; each may come once."""
    found: dict[int, Tensor] = {}
    for numbers, batch in batches:
        for number, pixels in zip(numbers.tolist(), batch.pixels, strict=True):
            assert number not in found, f"image {number} came twice"
            found[number] = pixels
    return found


def test_the_size_of_a_row_is_measured_and_bounds_the_buffer(tmp_path: Path) -> None:
    from recipe_ray.distributed.stream import SHUFFLE_BYTES, SHUFFLE_ROWS

    reading = reading_of(tmp_path, corpus_of(tmp_path, 4), 4)
    assert reading.making.rows is ImageRows
    assert reading.making.row_bytes == 3 * SIZE * SIZE + 8 + 8  # pixels, number, label
    assert stream(reading, None)._buffer == SHUFFLE_ROWS
    large = reading_of(tmp_path, reading.corpus, 4, size=224)
    assert stream(large, None)._buffer == SHUFFLE_BYTES // large.making.row_bytes < SHUFFLE_ROWS


@pytest.mark.usefixtures("ray_session")
def test_ray_data_makes_the_rows_that_one_process_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_ray.distributed import data as feed

    corpus = corpus_of(tmp_path, 150)
    reading = reading_of(tmp_path, corpus, 40)
    dataset = feed.samples_of(reading, stream=False)
    assert set(dataset.schema().names) == {"pixels", "index", "label"}
    monkeypatch.setattr(feed, "get_dataset_shard", lambda name: dataset.iterator())
    ours = feed.gathered(reading, reading.making)
    local = LocalFeed(Locations(None, tmp_path)).batches(corpus, ENCODE, batch_of, 8, 0, Part())
    theirs: Any = local.rows
    assert np.array_equal(ours.index, theirs.index)
    assert np.array_equal(ours.pixels, theirs.pixels)
    assert np.array_equal(ours.columns["label"], theirs.columns["label"])


@pytest.mark.usefixtures("ray_session")
def test_two_workers_stream_every_image_once_an_epoch_augmented_as_in_memory(
    tmp_path: Path,
) -> None:
    from recipe_ray.distributed.data import samples_of

    count, shares = 128, []
    corpus = corpus_of(tmp_path, count)
    reading = reading_of(tmp_path, corpus, 20)
    splits = samples_of(reading, stream=True).streaming_split(2, equal=True)
    rows = ENCODE(labelled_samples(count), np.arange(count))

    def take(rank: int, epoch: int) -> None:
        batches = stream(reading, splits[rank], world_size=2).epoch(epoch, rank, 2, 0)
        shares.append(list(batches))

    for epoch in (0, 1):
        workers = [threading.Thread(target=take, args=(rank, epoch)) for rank in (0, 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [len(share) for share in shares] == [count // 8] * 2
        found = pixels_by_number(batch for share in shares for batch in share)
        expected = batch_of(rows, augment=(AUGMENT_SEED, epoch)).pixels
        assert found.keys() == set(range(count))
        assert all(bool((pixels == expected[n]).all()) for n, pixels in found.items())
        shares.clear()


@pytest.mark.usefixtures("ray_session")
def test_a_stream_of_images_has_a_seeded_order_and_resumes(tmp_path: Path) -> None:
    from recipe_ray.distributed.data import samples_of

    reading = reading_of(tmp_path, corpus_of(tmp_path, 96), 24)

    def order(start: int = 0) -> list[int]:
        samples = samples_of(reading, stream=True).iterator()
        batches: Any = stream(reading, samples).epoch(0, 0, 1, start)
        return [int(number) for numbers, _ in batches for number in numbers]

    first = order()
    assert sorted(first) == list(range(96)) != first
    assert order() == first
    assert order(start=5) == first[40:]


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_the_memory_of_a_stream_of_images_does_not_grow_with_the_shards(tmp_path: Path) -> None:
    import ray

    # 96 images of 128x128 make 4.7 MB a shard; kept, 18 more would take 85 MB
    image = labelled_samples(1, size=32)
    peaks = []
    for num_shards in (2, 20):
        folder = tmp_path / str(num_shards)
        corpus = corpus_of(folder, 0, image * (96 * num_shards))
        reading = reading_of(folder, corpus, 96, size=128)
        task: Any = ray.remote(num_cpus=1, max_calls=1)(_peak_mb)
        peaks.append(ray.get(task.remote(reading)))
    assert peaks[1] - peaks[0] < 45, peaks


def _peak_mb(reading: Any) -> float:
    from recipe_ray.distributed import stream as streaming
    from recipe_ray.distributed.data import samples_of

    streaming.SHUFFLE_BYTES = 4 * 2**20  # so that two shards fill it
    peak = 0.0
    samples = samples_of(reading, stream=True).iterator()
    for _ in stream(reading, samples).epoch(0, 0, 1, 0):
        # resident pages without those shared with the object store
        resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
        peak = max(peak, (resident - shared) * 4096 / 1e6)
    return peak


# texts do the same in `test_held_out.py`; what differs for images, the rows, is compared above
@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("stream", [False, True])
def test_two_workers_train_a_model_on_images(tmp_path: Path, stream: bool) -> None:
    store = nested(tmp_path, corpus_of(tmp_path, 64), stream=stream)
    assert store.manifest(stage_of(tmp_path).artifact)["world_size"] == 2
    said = (store.fetch(stage_of(tmp_path).artifact) / "log.txt").read_text()
    assert ("s for data" in said) == stream


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("stream", [False, pytest.param(True, marks=pytest.mark.cluster)])
def test_an_image_that_cannot_be_decoded_is_named(tmp_path: Path, stream: bool) -> None:
    samples = labelled_samples(64)
    samples[40] = ImageSample(samples[40].data[:200], 0)
    corpus = corpus_of(tmp_path, 0, samples)
    assert "image 41 cannot be decoded" in raised_by(
        partial(nested, tmp_path, corpus, stream=stream)
    )


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_a_loss_that_is_not_finite_ends_the_stage_on_all_workers(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="step 1: the loss is not finite"):
        nested(tmp_path, corpus_of(tmp_path, 64), stream=False, learning_rate=1e30)
    assert Store.open(tmp_path / "store").committed() == {}


def test_an_error_from_another_process_is_told_as_it_was_raised_there() -> None:
    from ray.exceptions import RayTaskError

    from recipe_ray.distributed.train import original

    raised = DataError("image 41 cannot be decoded")
    inner = RayTaskError("made", "its traceback", raised, ip="127.0.0.1").as_instanceof_cause()
    outer = RayTaskError("get", "another", inner, ip="127.0.0.1").as_instanceof_cause()
    assert str(outer) != str(raised)
    assert original(outer) is raised
    assert original(raised) is raised


def stage_of(folder: Path, **changes: Any) -> PretrainStage:
    fit = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "precision": "fp32", **changes}
    corpus = {"name": "images", "path": str(folder / "images.parquet")}
    return PretrainStage.model_validate(
        {"model": TINY_VGG, "corpus": corpus, "trainable": "all", "fit": fit, "seed": 1}
    )


def nested(folder: Path, corpus: Corpus, *, stream: bool, **changes: Any) -> Store:
    """Pre-train the tiny VGG on two workers of Ray Train; return the store."""
    from recipe_ray.distributed.train import SweepContext, run_nested
    from recipe_ray.experiment.spec import Launch

    store = Store.open(folder / "store")
    launch = Launch(workers={"pretrain": 2}, stream=stream, max_failures=0)
    context = SweepContext({}, store, Locations(None, folder), launch)
    run_nested(stage_of(folder, **changes), context)
    return store
