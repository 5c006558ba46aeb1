"""The user's own images with captions."""

from typing import ClassVar

from pydantic import Field

from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.image_corpus import PairCorpus


@CORPORA.register("pairs")
class OwnPairs(PairCorpus):
    """Images with a caption each, in .parquet or .tar (WebDataset: .jpg and .txt) shards."""

    version: ClassVar[int] = 2  # 1 clipped 16 bits to white and did not turn images upright

    path: str = Field(description="the file or folder", json_schema_extra=NOT_HASHED)
