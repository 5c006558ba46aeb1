"""One worker's share of a stream as batches, made in threads beside the training loop."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import numpy as np

from recipe_ray.base.errors import SpecError
from recipe_ray.data.batches import Collate, deal
from recipe_ray.distributed.shuffle import ClosedError, ShuffleBuffer
from recipe_ray.learn.objective import Batch

SHUFFLE_ROWS = 4096  # samples in the buffer that a stream is shuffled in, at most
SHUFFLE_BYTES = 128 * 2**20  # and how large it may be where the size of a row is known
PREFETCH = 4  # batches
_STOPPING_S = 10.0  # how long a stream that nobody wants any more is waited for

log = logging.getLogger(__name__)


@dataclass
class StreamBatches:
    """One worker's batches as its samples stream in: nothing is kept but the shuffle buffer.

    Workers get equally many samples, and so take equally many steps; which of them meet in a batch
    depends on the number of workers, unlike in memory. What is random in a batch (masks, the
    augmentation of an image) is keyed on the sample's number and the epoch, so it does not.

    To set up a stream takes Ray Data seconds. So the next epoch's begins as soon as the present
    one's last sample is in the buffer.
    """

    samples: Any  # a Ray Data iterator over this worker's share
    encode: Callable[[Mapping[str, Any]], Any]  # columns of a piece -> rows
    collate: Collate
    batch_size: int
    seed: int
    num_samples: int
    world_size: int
    row_bytes: int = 0  # 0: unknown, and small
    _reader: "_Reader | None" = field(default=None, init=False)

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

    def epoch(
        self, epoch: int, rank: int, world_size: int, start: int, *, more: bool = False
    ) -> Iterator[Batch]:
        """Yield this worker's batches as they come; the first `start` are skipped.

        With `more` the next epoch is read ahead, and must be what is asked for next.
        """
        assert world_size == self.world_size
        reader = self._reader or _Reader(self.samples, ShuffleBuffer(self._buffer, self.seed))
        self._reader = reader
        for wanted in (epoch, epoch + 1) if more else (epoch,):
            reader.want(wanted)
        goes_on = False
        try:
            batches = ahead(self._made(reader.buffer, epoch, start), PREFETCH)
            yield from timed(batches, f"epoch {epoch + 1}")
            goes_on = more
        finally:
            if not goes_on:
                self._reader = None
                reader.stop()

    def _made(self, buffer: ShuffleBuffer, epoch: int, start: int) -> Iterator[Batch]:
        for step in range(self.steps_per_epoch):
            columns = buffer.draw(epoch, self._share)
            if step < start:
                continue
            rows = self.encode(columns)
            # one worker of one: only the order by length is wanted here
            ordered = rows.take(deal(np.arange(len(rows)), rows.lengths, 0, 1))
            yield self.collate(ordered, epoch)
        buffer.forget(epoch)


class _Reader:
    """A thread that reads a stream into a buffer, one epoch after the other as they are wanted.

    It starts an epoch only when the one before has been read to its end: Ray Data gives up what is
    left of a stream when all workers ask for the next.
    """

    def __init__(self, samples: Any, buffer: ShuffleBuffer) -> None:
        self.buffer = buffer
        self._samples = samples
        self._last = -1
        self._wanted: SimpleQueue[int | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="stream", daemon=True)
        self._thread.start()

    def want(self, epoch: int) -> None:
        """Have an epoch read, if it was not asked for before."""
        if epoch > self._last:
            self._last = epoch
            self._wanted.put(epoch)

    def stop(self) -> None:
        """Read no further, and give the stream back."""
        self.buffer.close()
        self._wanted.put(None)
        self._thread.join(_STOPPING_S)
        if self._thread.is_alive():
            log.warning("a stream was not given back within %.0f s", _STOPPING_S)

    def _read(self) -> None:
        try:
            for epoch in iter(self._wanted.get, None):
                # whole blocks: the buffer copies their rows, so they need not be cut to measure
                for piece in self._samples.iter_batches(batch_size=None, batch_format="numpy"):
                    self.buffer.put(epoch, piece)
                self.buffer.end(epoch)
        except ClosedError:
            log.debug("the stream was not read to its end: no more of it is wanted")
        except BaseException as error:  # whatever it is, it is raised where batches are asked for
            self.buffer.close(error)


def ahead(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Yield the batches, made in a thread of their own, up to `count` before they are asked for."""
    maker = ThreadPoolExecutor(1, "batches")
    pending: deque[Future[Batch | None]] = deque()
    try:
        while True:
            while len(pending) < count:
                pending.append(maker.submit(next, batches, None))
            batch = pending.popleft().result()
            if batch is None:
                return
            yield batch
    finally:
        maker.shutdown(wait=False, cancel_futures=True)


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
