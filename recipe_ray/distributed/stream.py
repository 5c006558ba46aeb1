"""One worker's share of a stream as batches, made in a thread beside the training loop."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from ray.data.collate_fn import NumpyBatchCollateFn

from recipe_ray.base.errors import SpecError
from recipe_ray.data.batches import Collate, deal
from recipe_ray.learn.objective import Batch

SHUFFLE_ROWS = 4096  # samples in the buffer that a stream is shuffled in, at most
SHUFFLE_BYTES = 128 * 2**20  # and how large it may be where the size of a row is known
PREFETCH = 4  # batches

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamBatches:
    """One worker's batches as its samples stream in: nothing is kept but the shuffle buffer.

    Workers get equally many samples, and so take equally many steps; which of them meet in a batch
    depends on the number of workers, unlike in memory. What is random in a batch (masks, the
    augmentation of an image) is keyed on the sample's number and the epoch, so it does not.
    """

    samples: Any  # a Ray Data iterator over this worker's share
    encode: Callable[[Mapping[str, Any]], Any]  # columns of a piece -> rows
    collate: Collate
    batch_size: int
    seed: int
    num_samples: int
    world_size: int
    row_bytes: int = 0  # 0: unknown, and small

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

    @property
    def _buffer(self) -> int:
        fitting = SHUFFLE_BYTES // self.row_bytes if self.row_bytes else SHUFFLE_ROWS
        return max(2 * self._share, min(SHUFFLE_ROWS, fitting))

    def epoch(self, epoch: int, rank: int, world_size: int, start: int) -> Iterator[Batch]:
        """Yield this worker's batches as they come; the first `start` are skipped."""
        assert world_size == self.world_size
        batches = self.samples.iter_torch_batches(
            prefetch_batches=PREFETCH,
            batch_size=self._share,
            collate_fn=_Made(self.encode, self.collate, epoch),
            local_shuffle_buffer_size=self._buffer,
            local_shuffle_seed=int(np.random.default_rng((self.seed, epoch)).integers(1 << 31)),
        )
        yield from timed(islice(batches, start, self.steps_per_epoch), f"epoch {epoch + 1}")


class _Made(NumpyBatchCollateFn):
    """Columns of a piece -> batch; called in Ray Data's threads, one at a time.

    One, because a tokenizer may not be asked by two threads at once.
    """

    def __init__(
        self, encode: Callable[[Mapping[str, Any]], Any], collate: Collate, epoch: int
    ) -> None:
        super().__init__()
        self._encode, self._collate, self._epoch = encode, collate, epoch
        self._lock = threading.Lock()

    def __call__(self, batch: dict[str, Any]) -> Any:
        with self._lock:
            rows = self._encode(batch)
            # one worker of one: only the order by length is wanted here
            ordered = rows.take(deal(np.arange(len(rows)), rows.lengths, 0, 1))
            return self._collate(ordered, self._epoch)


def timed(batches: Iterable[Batch], what: str) -> Iterator[Batch]:
    """Yield the batches, and log in the end how long whoever takes them has waited."""
    remaining, begun = iter(batches), time.perf_counter()
    waits: list[float] = []
    try:
        while True:
            asked = time.perf_counter()
            batch = next(remaining, None)
            waits.append(time.perf_counter() - asked)
            if batch is None:
                return
            yield batch
    finally:
        log.info(
            "%s: waited %.2f s of %.2f s for data, %.2f s of it for the first batch",
            what,
            sum(waits),
            time.perf_counter() - begun,
            waits[0] if waits else 0.0,
        )
