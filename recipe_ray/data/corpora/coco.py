"""COCO: the paper's auxiliary image-caption pairs for CLIP, 10,000 of them."""

from typing import ClassVar

from pydantic import Field

from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.hub import IMAGE_ROWS, HubSource
from recipe_ray.data.image_corpus import PairCorpus


@CORPORA.register("coco")
class Coco(PairCorpus):
    """Photographs with the first of about five captions.

    Hub: the 40,504 of the 2014 validation set; `main` is a branch (commit b3084f6 in 2024, no full
    hash documented), so pin `revision` for a number that must last. Data folder: 159 of 2017.
    """

    size: int | None = Field(default=10_000, ge=1, description="pairs; None for all there are")
    hub: ClassVar[HubSource | None] = HubSource(
        "lmms-lab/COCO-Caption",
        "main",
        split="val",
        columns=(("image", "image"), ("answer", "caption")),
        rows_at_once=IMAGE_ROWS,
    )
