"""What every trial and worker of a sweep shares."""

from dataclasses import dataclass

import torch

from recipe_ray.data.sources import Locations
from recipe_ray.experiment.spec import Launch
from recipe_ray.stages.stage import Stage
from recipe_ray.stages.store import Store


@dataclass(frozen=True)
class Work:
    """The stages of a sweep, where their artifacts and data are, and how they are launched."""

    stages: dict[str, Stage]
    store: Store
    locations: Locations
    launch: Launch
    experiment: str = "inline"  # under which event files and metrics are


def use_threads(count: int) -> None:
    """Let torch use as many threads as the worker has CPUs, where the environment did not."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
