"""SST-2: sentiment of film review sentences (paper, section 5)."""

from collections.abc import Mapping
from typing import ClassVar

from recipe_ray.data.hub import HubSource
from recipe_ray.tasks.task import TASKS, Split, TextTask

_HUB = ("SetFit/sst2", "00ea8ccb7a54b4e3780a3e51aa3f80361ff849c0", None)


@TASKS.register("sst2")
class Sst2(TextTask):
    """6,920 / 872 / 1,821 sentences; the hub has the same split (GLUE's SST-2 is another)."""

    label_names: ClassVar[tuple[str, ...]] = ("negative", "positive")
    longest: ClassVar[int | None] = 100  # 80 of MiniLM's
    hub: ClassVar[Mapping[Split, HubSource]] = {
        "train": HubSource(*_HUB, "train"),
        "dev": HubSource(*_HUB, "validation"),
        "test": HubSource(*_HUB, "test"),
    }
