"""The user's own labelled text."""

from recipe_ray.tasks.own_data import OwnData
from recipe_ray.tasks.task import TASKS
from recipe_ray.tasks.text_task import TextTask


@TASKS.register("file")
class OwnTask(OwnData, TextTask):
    """Own .parquet, .csv or .jsonl files; labels are numbers from 0 or the names of the classes."""
