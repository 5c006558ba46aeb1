"""ImageNet-1k: the paper's auxiliary images for VGG and ViT, 50,000 of its validation set."""

from typing import ClassVar

from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.hub import IMAGE_ROWS, HubSource
from recipe_ray.data.image_corpus import ImageCorpus


@CORPORA.register("imagenet")
class ImageNet(ImageCorpus):
    """Photographs in 1,000 classes, labels 0-999 in the usual order, which is torchvision's.

    Hub: the 50,000 of the validation set, in a gated repository whose terms must be accepted. Data
    folder: one training image a class.
    """

    num_classes: ClassVar[int | None] = 1000
    # not documented by its authors, but what public projects pin
    hub: ClassVar[HubSource | None] = HubSource(
        "ILSVRC/imagenet-1k",
        "49e2ee26f3810fb5a7536bbf732a7b07389a47b5",
        split="validation",
        columns=(("image", "image"), ("label", "label")),
        rows_at_once=IMAGE_ROWS,
    )
