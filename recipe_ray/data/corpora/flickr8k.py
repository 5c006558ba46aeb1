"""Flickr8k: image-caption pairs of the same kind as COCO's."""

from typing import ClassVar

from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.hub import IMAGE_ROWS, HubSource
from recipe_ray.data.image_corpus import PairCorpus


@CORPORA.register("flickr8k")
class Flickr8k(PairCorpus):
    """Photographs with the first of five captions.

    Hub: the 6,000 of the training set; `main` is a branch (commit 56f58c9 in 2023, no full hash
    documented), so pin `revision` for a number that must last. Data folder: 1,000, smaller.
    """

    hub: ClassVar[HubSource | None] = HubSource(
        "jxie/flickr8k",
        "main",
        columns=(("image", "image"), ("caption_0", "caption")),
        rows_at_once=IMAGE_ROWS,
    )
