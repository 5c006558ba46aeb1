"""One worker's share of a stream as batches, made in threads while the loop trains.

Rows wait in a shuffle buffer of fixed size. Epochs overlap in it: as the rows of one are drawn,
those of the next take their room. What is drawn depends only on the seed and the order of the rows,
never on which thread was faster. The buffer does not use Ray.
"""

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
from numpy.typing import NDArray

from recipe_ray.base.errors import DataError, SpecError
from recipe_ray.data.batches import Collate, deal
from recipe_ray.learn.objective import Batch

Columns = Mapping[str, NDArray[Any]]


class ClosedError(Exception):
    """The buffer was closed: no more of the stream is wanted."""


class ShuffleBuffer:
    """Room for `capacity` rows, which one thread puts in and another one draws.

    The rows are in arrays made once, so memory is constant for a stream of any length.
    """

    def __init__(self, capacity: int, seed: int) -> None:
        self.capacity = capacity
        self._seed = seed
        self._columns: dict[str, NDArray[Any]] = {}
        self._free = list(range(capacity))
        self._epochs: dict[int, _Epoch] = {}
        self._first = 0  # the epochs before it are over
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def put(self, epoch: int, rows: Columns) -> None:
        """Put rows in, as room is made for them; those of a forgotten epoch are dropped.

        Raises ClosedError.
        """
        done, count = 0, len(next(iter(rows.values())))
        while done < count:
            with self._changed:
                self._changed.wait_for(lambda: self._free or self._error)
                self._check()
                if epoch < self._first:
                    return
                room = min(len(self._free), count - done)
                slots = [self._free.pop() for _ in range(room)]
                self._write(slots, {n: column[done : done + room] for n, column in rows.items()})
                self._epoch(epoch).arrived.extend(slots)
                self._changed.notify_all()
            done += room

    def end(self, epoch: int) -> None:
        """Say that all rows of an epoch were put in."""
        with self._changed:
            if epoch >= self._first:
                self._epoch(epoch).ended = True
            self._changed.notify_all()

    def draw(self, epoch: int, count: int) -> dict[str, NDArray[Any]]:
        """Return `count` rows of an epoch, fewer at its end, chosen among those within reach.

        The reach is a quarter of the buffer at first, so that an epoch begins before the buffer is
        full, and grows with every draw. Raises ClosedError, or what the reading thread failed with.
        """
        with self._changed:
            state = self._epoch(epoch)
            state.reach = min(self.capacity, state.reach + count)
            self._changed.wait_for(lambda: self._error or state.ended or state.has_reach())
            self._check()
            slots = state.choose(count)
            rows = {name: column[slots] for name, column in self._columns.items()}
            self._release(slots)
        return rows

    def forget(self, epoch: int) -> None:
        """Drop the rest of an epoch, and what may still arrive of it."""
        with self._changed:
            self._first = epoch + 1
            state = self._epochs.pop(epoch)
            self._release([*state.window, *state.arrived])

    def close(self, error: BaseException | None = None) -> None:
        """Wake all that wait, with ClosedError or with the error that ended the reading."""
        with self._changed:
            self._error = self._error or error or ClosedError()
            self._changed.notify_all()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _epoch(self, epoch: int) -> "_Epoch":
        if epoch not in self._epochs:
            rng = np.random.default_rng((self._seed, epoch))
            self._epochs[epoch] = _Epoch(rng, self.capacity // 4)
        return self._epochs[epoch]

    def _write(self, slots: list[int], rows: Columns) -> None:
        if not self._columns:
            self._columns = {name: self._room_for(column) for name, column in rows.items()}
        for name, column in rows.items():
            room = self._columns[name]
            if room.dtype not in (object, column.dtype):
                raise DataError(
                    f"column {name!r} of a stream is {column.dtype} after {room.dtype}: every "
                    f"sample must have the same"
                )
            room[slots] = column

    def _room_for(self, column: NDArray[Any]) -> NDArray[Any]:
        # numpy's strings are as wide as the widest of a piece: the next piece may have wider ones
        dtype = object if column.dtype.kind in "OSU" else column.dtype
        return np.empty((self.capacity, *column.shape[1:]), dtype)

    def _release(self, slots: list[int]) -> None:
        self._free.extend(slots)
        self._changed.notify_all()


class _Epoch:
    """The slots that hold an epoch's rows: the window that is drawn from, and those after it."""

    def __init__(self, rng: np.random.Generator, reach: int) -> None:
        self.reach = reach
        self.ended = False
        self.window: list[int] = []
        self.arrived: deque[int] = deque()
        self._rng = rng

    def has_reach(self) -> bool:
        return len(self.window) + len(self.arrived) >= self.reach

    def choose(self, count: int) -> list[int]:
        """Take up to `count` slots at random out of the window, filled up to the reach first."""
        while self.arrived and len(self.window) < self.reach:
            self.window.append(self.arrived.popleft())
        chosen = []
        for _ in range(min(count, len(self.window))):
            place = int(self._rng.integers(len(self.window)))
            self.window[place], self.window[-1] = self.window[-1], self.window[place]
            chosen.append(self.window.pop())
        return chosen


SHUFFLE_ROWS = 4096  # samples in the buffer that a stream is shuffled in, at most
SHUFFLE_BYTES = 128 * 2**20  # and how large it may be if the size of a row is known
PREFETCH = 4  # batches
_STOPPING_S = 10.0  # how long to wait for a stream that is no longer wanted

log = logging.getLogger(__name__)


@dataclass
class StreamBatches:
    """One worker's batches as its samples stream in: only the shuffle buffer is kept.

    Workers get equally many samples, and so take equally many steps; which of them meet in a batch
    depends on the number of workers, unlike in memory. What is random in a batch (masks, the
    augmentation of an image) is keyed on the sample's number and the epoch, so it does not.

    Ray Data needs seconds to set up a stream. So the next epoch's begins as soon as the present
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
        """Global batches per epoch, the last one possibly short."""
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
            # one worker of one: only the order by length is needed here
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
        """Start to read an epoch, unless that was asked for before."""
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
        except BaseException as error:  # any error is raised where batches are asked for
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
    """Yield the batches, and log in the end how long their user has waited."""
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
