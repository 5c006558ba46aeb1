"""A shuffle buffer of fixed size between whoever reads a stream and whoever trains on it.

Epochs overlap in it: as the rows of one are drawn, those of the next take their room. What is drawn
depends on the seed and the order of the rows alone, never on which thread was the faster. Free of
Ray.
"""

import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipe_ray.base.errors import DataError

Columns = Mapping[str, NDArray[Any]]


class ClosedError(Exception):
    """The buffer was closed: nobody wants more of the stream."""


class ShuffleBuffer:
    """Room for `capacity` rows, which one thread puts in and another one draws.

    The rows lie in arrays made once, so that the memory is flat however long the stream is.
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
        """Drop what is left of an epoch, and what may still come of it."""
        with self._changed:
            self._first = epoch + 1
            state = self._epochs.pop(epoch)
            self._release([*state.window, *state.arrived])

    def close(self, error: BaseException | None = None) -> None:
        """Wake whoever waits; with ClosedError, or with the error that ended the reading."""
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
