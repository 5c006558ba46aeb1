"""The shuffle buffer of a stream: every row once, the same order whoever is faster, flat room."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from recipe_ray.base.errors import DataError
from recipe_ray.distributed.stream import ClosedError, ShuffleBuffer, StreamBatches

NUM_ROWS, CAPACITY, SHARE = 100, 32, 8
WAIT_S = 20


def piece(first: int, count: int) -> dict[str, np.ndarray]:
    """Return `count` rows that are their own numbers."""
    numbers = np.arange(first, first + count)
    return {"index": numbers, "text": np.array([f"text {n}" for n in numbers])}


def fill(buffer: ShuffleBuffer, epochs: int, pause_s: float = 0.0) -> None:
    """Put in epochs of `NUM_ROWS` rows, in pieces that are no multiple of anything."""
    for epoch in range(epochs):
        for first in range(0, NUM_ROWS, 7):
            time.sleep(pause_s)
            buffer.put(epoch, piece(first, min(7, NUM_ROWS - first)))
        buffer.end(epoch)


def drawn(epochs: int, read_pause_s: float = 0.0, train_pause_s: float = 0.0) -> list[list[int]]:
    """Draw all rows of some epochs while a thread puts them in; return each epoch's numbers."""
    buffer = ShuffleBuffer(CAPACITY, seed=3)
    reader = threading.Thread(target=fill, args=(buffer, epochs, read_pause_s), daemon=True)
    reader.start()
    orders = []
    for epoch in range(epochs):
        order: list[int] = []
        while len(order) < NUM_ROWS:
            time.sleep(train_pause_s)
            rows = buffer.draw(epoch, SHARE)
            assert [f"text {n}" for n in rows["index"]] == list(rows["text"])
            order += rows["index"].tolist()
        buffer.forget(epoch)
        orders.append(order)
    reader.join(WAIT_S)
    return orders


def test_every_row_comes_once_an_epoch_in_an_order_of_its_own() -> None:
    orders = drawn(3)
    assert all(sorted(order) == list(range(NUM_ROWS)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_the_order_does_not_depend_on_who_is_faster() -> None:
    assert drawn(2) == drawn(2, read_pause_s=0.004) == drawn(2, train_pause_s=0.008)


def test_rows_are_mixed_as_far_as_the_buffer_reaches() -> None:
    order = np.array(drawn(1)[0])
    moved = np.abs(order - np.arange(NUM_ROWS))
    assert moved.mean() > CAPACITY / 4
    # a row can wait for long, but none comes before the buffer has got to it
    assert (order < CAPACITY // 4 + 2 * (np.arange(NUM_ROWS) + SHARE)).all()


def test_the_next_epoch_is_in_the_buffer_before_the_last_row_of_this_one_is_drawn() -> None:
    buffer = ShuffleBuffer(CAPACITY, seed=0)
    buffer.put(0, piece(0, 24))
    buffer.end(0)
    buffer.put(1, piece(0, 8))  # would block if the epochs did not share the room
    waiting = threading.Thread(target=buffer.put, args=(1, piece(8, 8)), daemon=True)
    waiting.start()
    time.sleep(0.05)
    assert waiting.is_alive()  # full: no more than `CAPACITY` rows are ever held
    assert sorted(buffer.draw(0, 24)["index"]) == list(range(24))
    waiting.join(WAIT_S)
    assert not waiting.is_alive()
    buffer.forget(0)
    buffer.end(1)
    assert sorted(buffer.draw(1, 16)["index"]) == list(range(16))


def test_what_is_left_of_a_forgotten_epoch_makes_room() -> None:
    buffer = ShuffleBuffer(CAPACITY, seed=0)
    buffer.put(0, piece(0, CAPACITY))
    buffer.draw(0, SHARE)
    buffer.forget(0)
    buffer.put(0, piece(0, 3 * CAPACITY))
    buffer.put(1, piece(0, CAPACITY))
    buffer.end(1)
    assert sorted(buffer.draw(1, CAPACITY)["index"]) == list(range(CAPACITY))


def test_a_longer_text_than_those_before_is_not_cut() -> None:
    buffer = ShuffleBuffer(CAPACITY, seed=0)
    buffer.put(0, {"text": np.array(["a"])})
    buffer.put(0, {"text": np.array(["a much longer one"])})
    buffer.end(0)
    assert sorted(buffer.draw(0, 2)["text"]) == ["a", "a much longer one"]


def test_a_column_that_changes_its_kind_is_refused_by_name() -> None:
    buffer = ShuffleBuffer(CAPACITY, seed=0)
    buffer.put(0, {"label": np.array([1, 2])})
    with pytest.raises(DataError, match="column 'label' of a stream is float64 after int64"):
        buffer.put(0, {"label": np.array([np.nan])})


def test_closing_wakes_both_sides() -> None:
    buffer = ShuffleBuffer(CAPACITY, seed=0)
    raised: list[type[BaseException]] = []

    def until_closed(what: Any, *given: Any) -> None:
        with pytest.raises(ClosedError):
            what(*given)
        raised.append(ClosedError)

    sides = [
        threading.Thread(target=until_closed, args=(buffer.draw, 1, SHARE), daemon=True),
        threading.Thread(target=until_closed, args=(buffer.put, 0, piece(0, 99)), daemon=True),
    ]
    for side in sides:
        side.start()
    buffer.close()
    for side in sides:
        side.join(WAIT_S)
    assert raised == [ClosedError, ClosedError]


class Samples:
    """Stands for a Ray Data iterator: notes which epochs were begun, and can fail."""

    def __init__(self, fails_in: int | None = None) -> None:
        self.begun = 0
        self.begins = threading.Condition()
        self._fails_in = fails_in

    def iter_batches(self, **options: Any) -> Iterator[dict[str, np.ndarray]]:
        with self.begins:
            self.begun += 1
            self.begins.notify_all()
        for first in range(0, NUM_ROWS, 10):
            if self.begun - 1 == self._fails_in and first == 50:
                raise DataError("image 51 cannot be decoded")
            yield piece(first, 10)

    def until_begun(self, epochs: int) -> bool:
        with self.begins:
            return self.begins.wait_for(lambda: self.begun >= epochs, WAIT_S)


class Numbers:
    """Rows of numbers, as long as they are large."""

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers
        self.lengths = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, rows: np.ndarray) -> "Numbers":
        return Numbers(self.numbers[rows])


def batches_of(samples: Samples) -> StreamBatches:
    def numbers(columns: Any) -> Numbers:
        return Numbers(columns["index"])

    def as_list(rows: Numbers, epoch: int) -> Any:
        return rows.numbers.tolist()

    return StreamBatches(samples, numbers, as_list, SHARE, 0, NUM_ROWS, 1, row_bytes=2**22)


def test_a_stream_reads_ahead_only_where_more_is_wanted() -> None:
    samples = Samples()
    batches = batches_of(samples)
    epoch: Any = batches.epoch(0, 0, 1, 0, more=True)
    first = [next(epoch) for _ in range(batches.steps_per_epoch - 1)]
    assert samples.until_begun(2)  # with a batch of the first epoch still to come
    first += epoch
    second: list[Any] = list(batches.epoch(1, 0, 1, 0))
    for found in (first, second):
        assert sorted(n for batch in found for n in batch) == list(range(NUM_ROWS))
    assert first != second
    assert samples.begun == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "stream"]


def test_a_stream_that_is_left_in_the_middle_is_given_back() -> None:
    samples = Samples()
    epoch = batches_of(samples).epoch(0, 0, 1, 0, more=True)
    next(epoch)
    del epoch
    assert not [thread for thread in threading.enumerate() if thread.name == "stream"]


def test_what_the_reading_thread_failed_with_is_raised_where_batches_are_asked_for() -> None:
    with pytest.raises(DataError, match="image 51 cannot be decoded"):
        list(batches_of(Samples(fails_in=0)).epoch(0, 0, 1, 0))
    batches = batches_of(Samples(fails_in=1))

    def train() -> None:
        for epoch in range(3):
            list(batches.epoch(epoch, 0, 1, 0, more=True))

    with pytest.raises(DataError, match="image 51 cannot be decoded"):
        train()
