"""Tasks on images."""

from typing import ClassVar

import pyarrow as pa

from recipe_ray.data.image_sources import open_images
from recipe_ray.data.images import ImageSample
from recipe_ray.data.sources import Source, batch_images
from recipe_ray.tasks.task import Task


class ImageTask(Task):
    """Labelled images; a sample is an `ImageSample`, its label kept apart from it.

    Own data are .parquet or .tar (WebDataset) shards, or a folder of class folders whose names are
    those of the classes, or their labels.
    """

    holds: ClassVar[str] = "image"

    image_column: str = "image"

    def opened(self, path: str) -> Source:
        """Return the source of the user's own Parquet, tar shards or class folders."""
        return open_images(path, f"task {self.name!r}", "label", by_name=True)

    def read(self, batch: pa.RecordBatch, owner: str, before: int) -> list[ImageSample]:
        """Return the encoded images of a batch."""
        return [ImageSample(data) for data in batch_images(batch, self.image_column, owner, before)]
