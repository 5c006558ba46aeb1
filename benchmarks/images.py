"""Streamed images: how long the training loop waits for them, and what memory they take.

BENCHMARK_SECONDS is how long the measured training lasts (default 180); BENCHMARK_WORKERS its DDP
workers (default 2). Each measurement is a fresh process (`python -m benchmarks.images REQUEST`).
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.contenders import Figure, data_folder
from recipe_ray.data.batches import Part
from recipe_ray.data.corpora import LISTED
from recipe_ray.data.images import ImageEncoder, batch_of
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.data import shard
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.run import LOG_FILE
from recipe_ray.store.store import Store

SECONDS = float(os.environ.get("BENCHMARK_SECONDS", "180"))
WORKERS = int(os.environ.get("BENCHMARK_WORKERS", "2"))
TRIAL_STEPS = 1500  # to find out how many steps the seconds are; the first hundreds are slow
BATCH = 64
IMAGE_SIZE = 32
IMAGES_A_SHARD = 1000
SHARDS = (2, 5, 10, 20)  # the last are all there are
MODEL = {
    "name": "vgg",
    "image_size": IMAGE_SIZE,
    "channels": [32, "M", 64, "M", 128, "M"],
    "grid": 2,
    "num_classes": 1000,
}
_WAITED = re.compile(r"waited ([\d.]+) s of ([\d.]+) s for data, ([\d.]+) s of it for the first")


def figures() -> list[Figure]:
    """Measure a streamed training, and streams of few shards and of many."""
    return [*waiting(), *memory()]


def waiting() -> list[Figure]:
    """The share of its time that the loop of rank 0 waits for images, whole and after a start.

    A small VGG on Tiny ImageNet at 32x32, with augmentation. `later`: without the first batch of
    each epoch, which waits for the stream to be set up and the shuffle buffer to fill.
    """
    trial = _ask({"how": "train", "steps": TRIAL_STEPS})
    steps = max(TRIAL_STEPS, round(SECONDS / trial["step_s"]))
    run = _ask({"how": "train", "steps": steps})
    return [
        Figure("image_stream_seconds", [run["total_s"]], "s"),
        Figure("image_stream_images", [steps * BATCH / run["total_s"]], "images/s"),
        Figure("image_stream_wait_share", [run["waited_s"] / run["total_s"]], "of the time"),
        Figure("image_stream_wait_share_later", [run["later_share"]], "of the time"),
    ]


def memory() -> list[Figure]:
    """The peak memory of a worker that streams few shards, and up to ten times as many."""
    asked = ((count, _ask({"how": "stream", "shards": count})) for count in SHARDS)
    return [Figure(f"image_stream_memory_{n}_shards", [told["peak_mb"]], "MB") for n, told in asked]


def _ask(request: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.images", json.dumps(request)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    )
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _trained(request: dict[str, Any]) -> dict[str, float]:
    """Pre-train on a stream; return what the stage's log says of waiting, sums over the epochs."""
    from recipe_ray.distributed.cluster import connected
    from recipe_ray.distributed.train import SweepContext, run_nested
    from recipe_ray.experiment.spec import Launch

    stage = PretrainStage.model_validate(
        {
            "model": MODEL,
            "corpus": {"name": "tinyimagenet32"},
            "trainable": "all",
            "fit": {"steps": request["steps"], "batch_size": BATCH, "optimizer": "sgd"},
            "seed": 0,
        }
    )
    launch = Launch(stream=True, workers={"pretrain": WORKERS})
    with tempfile.TemporaryDirectory() as folder, connected(None, launch):
        store = Store.open(folder)
        run_nested(
            stage,
            SweepContext({stage.key: stage}, store, Locations(data_folder(), Path(folder)), launch),
        )
        log = (store.fetch(stage.artifact) / LOG_FILE).read_text()
    epochs = [tuple(map(float, found)) for found in _WAITED.findall(log)]
    waited, total, first = (sum(epoch[place] for epoch in epochs) for place in range(3))
    return {
        "waited_s": waited,
        "total_s": total,
        "later_share": (waited - first) / (total - first),
        "step_s": (total - first) / request["steps"],
    }


def _streamed(request: dict[str, Any]) -> dict[str, float]:
    """Return the peak of a process that takes batches from a stream and drops them."""
    import ray

    from recipe_ray.distributed.cluster import connected
    from recipe_ray.experiment.spec import Launch

    with tempfile.TemporaryDirectory() as folder, connected(None, Launch(stream=True)):
        task: Any = ray.remote(num_cpus=1, max_calls=1)(_peak_mb)
        return {"peak_mb": ray.get(task.remote(folder, request["shards"]))}


def _peak_mb(folder: str, num_shards: int) -> float:
    from recipe_ray.distributed.data import Reading, making_of, samples_of
    from recipe_ray.distributed.stream import StreamBatches

    size = num_shards * IMAGES_A_SHARD
    corpus = LISTED["tinyimagenet32"](size=size)
    places = Locations(data_folder(), Path(folder))
    shards = shard(corpus, places, Store.open(folder), IMAGES_A_SHARD)
    making = making_of(corpus, shards, ImageEncoder(224))
    reading = Reading("corpus", corpus, Part(), shards, making)
    batches = StreamBatches(
        samples_of(reading, stream=True).iterator(),
        making.rows.from_columns,
        lambda rows, epoch: batch_of(rows, augment=(0, epoch)),
        BATCH,
        0,
        shards.num_samples,
        1,
        making.row_bytes,
    )
    peak = _Peak()
    for _ in batches.epoch(0, 0, 1, 0):
        pass
    return peak.stop()


class _Peak:
    """The most memory this process has held, less what it shares with the object store."""

    def __init__(self) -> None:
        self._peak, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.is_set():
            resident, shared = map(int, Path("/proc/self/statm").read_text().split()[1:3])
            self._peak = max(self._peak, (resident - shared) * os.sysconf("SC_PAGESIZE") / 1e6)
            time.sleep(0.02)

    def stop(self) -> float:
        """Return the peak in MB."""
        self._ended.set()
        self._thread.join()
        return self._peak


_HOW = {"train": _trained, "stream": _streamed}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    sys.stdout.write(json.dumps(_HOW[asked["how"]](asked)) + "\n")
