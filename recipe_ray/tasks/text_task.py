"""Tasks on texts."""

from typing import ClassVar

import pyarrow as pa

from recipe_ray.base.errors import DataError
from recipe_ray.data.sources import batch_texts
from recipe_ray.tasks.task import Task


class TextTask(Task):
    """Labelled texts, stripped and never empty; a sample is a string."""

    holds: ClassVar[str] = "text"

    text_column: str = "text"

    def read(self, batch: pa.RecordBatch, owner: str, before: int) -> list[str]:
        """Return the texts of a batch."""
        if self.text_column == self.label_column:
            raise DataError(f"{owner}: text_column and label_column are both {self.text_column!r}")
        texts = list(batch_texts(batch, self.text_column, owner, before))
        if "" in texts:
            raise DataError(f"{owner}: row {before + texts.index('') + 1} has no text")
        return texts
