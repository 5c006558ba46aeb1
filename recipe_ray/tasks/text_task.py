"""Tasks on texts."""

from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa

from recipe_ray.base.errors import DataError
from recipe_ray.data.sources import batch_texts
from recipe_ray.tasks.task import Task


class TextTask(Task):
    """Labelled texts, stripped and never empty; a sample is a string."""

    holds: ClassVar[str] = "text"

    # of a fixed data set: no text has more tokens, special ones included, with some to spare for
    # another vocabulary than WordPiece; None if that is not known
    longest: ClassVar[int | None] = None

    text_column: str = "text"

    def may_be_cut(self, max_length: int, triggers: Sequence[str] = ()) -> bool:
        """Tell whether a text with a trigger may be more than `max_length` tokens.

        Own data may be anything, and a trigger at most a token a byte and one for the space.
        """
        if self.longest is None or self.path_train or self.path_dev or self.path_test:
            return True
        return self.longest + max((len(t.encode()) + 1 for t in triggers), default=0) > max_length

    def read(self, batch: pa.RecordBatch, owner: str, before: int) -> list[str]:
        """Return the texts of a batch."""
        if self.text_column == self.label_column:
            raise DataError(f"{owner}: text_column and label_column are both {self.text_column!r}")
        texts = list(batch_texts(batch, self.text_column, owner, before))
        if "" in texts:
            raise DataError(f"{owner}: row {before + texts.index('') + 1} has no text")
        return texts
