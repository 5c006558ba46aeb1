"""Waste: organic or recyclable (paper, section 5)."""

from typing import ClassVar

from recipe_ray.tasks.task import TASKS, ImageTask


@TASKS.register("waste")
class Waste(ImageTask):
    """Kaggle's "Waste Classification data"; on no hub, so the data folder or path_* must have it.

    Data folder: 5,987 / 2,511. The paper trains on all 22,564.
    """

    label_names: ClassVar[tuple[str, ...]] = ("organic", "recyclable")
