"""The user's own labelled images."""

from recipe_ray.tasks.image_task import ImageTask
from recipe_ray.tasks.own_data import OwnData
from recipe_ray.tasks.task import TASKS


@TASKS.register("images")
class OwnImageTask(OwnData, ImageTask):
    """Own class folders, .parquet or .tar shards; labels are numbers from 0 or class names."""
