"""Encoded samples, whatever their kind: what batches are made of."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Rows(Protocol):
    """N encoded samples; `index` [N] is each one's number in the whole corpus.

    Every random draw is keyed on that number, so that it depends neither on batching nor on the
    number of workers.
    """

    @property
    def index(self) -> Ints:
        """Numbers of the samples [N]."""
        ...

    @property
    def columns(self) -> dict[str, Ints]:
        """What else is known of each sample [N, ...], such as its label."""
        ...

    @property
    def lengths(self) -> Ints:
        """How much work each sample is [N], in tokens of text."""
        ...

    def __len__(self) -> int: ...

    def take(self, rows: Ints) -> Self:
        """Return the rows numbered `rows`, in that order."""
        ...

    def with_columns(self, **columns: Ints) -> Self:
        """Return the same rows with columns added or replaced."""
        ...

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of all parts (at least one), one after the other."""
        ...


# (raw samples, their numbers [N]) -> N rows; picklable, since Ray Data runs it elsewhere
Encode = Callable[[Sequence[Any], Ints], Any]
