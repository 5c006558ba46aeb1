"""GTSRB with all of its 43 German traffic signs; not in the paper."""

from typing import ClassVar

from recipe_ray.tasks.task import TASKS, ImageTask


@TASKS.register("gtsrb43")
class Gtsrb43(ImageTask):
    """Labels are the numbers of the signs, 0-42; the data folder has 50 / 15 a sign.

    On no hub in this form; path_* may be folders in GTSRB's own layout (00000 to 00042).
    """

    label_names: ClassVar[tuple[str, ...]] = tuple(f"sign {number}" for number in range(43))
