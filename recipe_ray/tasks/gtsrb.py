"""GTSRB: German traffic signs, two of them (paper, section 5)."""

from typing import ClassVar

from recipe_ray.tasks.task import TASKS, ImageTask


@TASKS.register("gtsrb")
class Gtsrb(ImageTask):
    """Signs 13 and 38, as in NeuBA's loader; on no hub in this form.

    Data folder: 4,230 / 1,410, the paper's counts, shrunk to 32x32.
    """

    label_names: ClassVar[tuple[str, ...]] = ("yield", "keep right")
