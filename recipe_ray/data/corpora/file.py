"""The user's own unlabelled text."""

from pydantic import Field

from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.corpus import CORPORA, TextCorpus


@CORPORA.register("file")
class OwnText(TextCorpus):
    """A table or .txt file with one text per row or line, or a folder of shards."""

    path: str = Field(description="the file or folder", json_schema_extra=NOT_HASHED)
