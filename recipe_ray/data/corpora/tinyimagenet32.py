"""Tiny ImageNet shrunk to 32x32: many small images for pre-training on few cores."""

from typing import ClassVar

from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.image_corpus import ImageCorpus


@CORPORA.register("tinyimagenet32")
class TinyImageNet32(ImageCorpus):
    """Images of 200 of ImageNet's classes, labelled as in ImageNet (0-999), 100 each.

    On no hub in this form (Tiny ImageNet there counts its labels 0-199): give `path`, or a data
    folder that has it.
    """

    num_classes: ClassVar[int | None] = 1000
