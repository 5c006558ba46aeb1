"""CIFAR10's training images as auxiliary data (paper's appendix, for VGG and ViT)."""

from typing import ClassVar

from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.hub import HubSource
from recipe_ray.data.image_corpus import ImageCorpus


@CORPORA.register("cifar10")
class Cifar10Images(ImageCorpus):
    """50,000 images of 32x32 in ten classes, labels 0-9.

    As the auxiliary data of a PTM pre-trained on other classes the labels are learnt by the first
    ten outputs of its own head, which the paper leaves open: the head is thrown away when a user
    fine-tunes, and the loss is the same cross-entropy. A head of fewer than ten classes is refused.
    """

    num_classes: ClassVar[int | None] = 10
    file_name: ClassVar[str | None] = "cifar10_train"
    hub: ClassVar[HubSource | None] = HubSource(
        "uoft-cs/cifar10",
        "0b2714987fa478483af9968de7c934580d0bb9a2",
        "plain_text",
        "train",
        columns=(("img", "image"), ("label", "label")),
    )
