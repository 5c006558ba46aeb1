"""The user's own labelled images."""

from pydantic import Field

from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.tasks.image_task import ImageTask
from recipe_ray.tasks.task import TASKS


@TASKS.register("images")
class OwnImageTask(ImageTask):
    """Own class folders, .parquet or .tar shards; labels are numbers from 0 or class names."""

    class_names: tuple[str, ...] = Field(min_length=2, description="in the order of the labels")
    path_train: str = Field(description="training data", json_schema_extra=NOT_HASHED)
    path_test: str = Field(description="test data", json_schema_extra=NOT_HASHED)

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names given."""
        return self.class_names
