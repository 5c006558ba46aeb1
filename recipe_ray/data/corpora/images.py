"""The user's own labelled images."""

from typing import ClassVar

from pydantic import Field

from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.image_corpus import ImageCorpus


@CORPORA.register("images")
class OwnImages(ImageCorpus):
    """A folder with a folder of images a class, or .parquet or .tar (WebDataset) shards.

    Class folders are numbered from 0 in the order of their names (numbers by value).
    """

    version: ClassVar[int] = 2  # 1 clipped 16 bits to white and did not turn images upright

    path: str = Field(description="the file or folder", json_schema_extra=NOT_HASHED)
