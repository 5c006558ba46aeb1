"""Tasks on images."""

from typing import ClassVar

import pyarrow as pa

from recipe_ray.data.images import ImageSample
from recipe_ray.data.sources import batch_images
from recipe_ray.tasks.task import Task


class ImageTask(Task):
    """Labelled images; a sample is an `ImageSample`, its label kept apart from it."""

    holds: ClassVar[str] = "image"

    image_column: str = "image"

    def read(self, batch: pa.RecordBatch, owner: str, before: int) -> list[ImageSample]:
        """Return the encoded images of a batch."""
        return [ImageSample(data) for data in batch_images(batch, self.image_column, owner, before)]
