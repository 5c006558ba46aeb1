"""VizWiz-Captions: photographs taken by blind people (paper's appendix, for CLIP)."""

from typing import ClassVar

from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.hub import IMAGE_ROWS, HubSource
from recipe_ray.data.image_corpus import PairCorpus


@CORPORA.register("vizwiz")
class VizWiz(PairCorpus):
    """Photographs with the first of five captions, some of which say that nothing can be seen.

    Hub: the 7,750 of the validation set; `main` is a branch, so pin `revision` for a number that
    must last. Its columns could not be confirmed: a wrong one ends in an error that lists them.
    """

    hub: ClassVar[HubSource | None] = HubSource(
        "lmms-lab/VizWiz-Caps",
        "main",
        split="val",
        columns=(("image", "image"), ("caption", "caption")),
        rows_at_once=IMAGE_ROWS,
    )
