"""CIFAR10: ten kinds of things at 32x32 (paper, section 5)."""

from collections.abc import Mapping
from typing import ClassVar

from recipe_ray.data.hub import HubSource
from recipe_ray.tasks.task import TASKS, ImageTask, Split

_HUB = ("uoft-cs/cifar10", "0b2714987fa478483af9968de7c934580d0bb9a2", "plain_text")
_COLUMNS = (("img", "image"), ("label", "label"))


@TASKS.register("cifar10")
class Cifar10(ImageTask):
    """50,000 / 10,000 images; the hub's are lossless, the data folder's JPEG."""

    label_names: ClassVar[tuple[str, ...]] = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    hub: ClassVar[Mapping[Split, HubSource]] = {
        "train": HubSource(*_HUB, "train", columns=_COLUMNS),
        "test": HubSource(*_HUB, "test", columns=_COLUMNS),
    }
