"""What a sweep tells whoever watches it, and what it returns; free of Ray."""

from dataclasses import dataclass, field
from typing import Literal

from recipe_ray.stages.advance import Advance
from recipe_ray.stages.stage import Stage

# lost: its processes died and it starts again; elsewhere: another driver makes it
EventKind = Literal["skipped", "started", "progress", "finished", "failed", "lost", "elsewhere"]


@dataclass(frozen=True)
class SweepEvent:
    """One thing that happened to one stage; `wall_s` counts from the stage's start.

    `left_s` is to the end of the whole sweep, None where that cannot be said yet.
    """

    kind: EventKind
    stage: Stage
    wall_s: float = 0.0
    progress: Advance | None = None  # of kind "progress"
    message: str = ""  # of "failed" and "lost": why; of "elsewhere": which driver
    left_s: float | None = None


@dataclass(frozen=True)
class SweepOutcome:
    """Keys of the stages that were done now, were made by others, or failed (with the reason)."""

    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()  # there already, or committed by another driver meanwhile
    failed: dict[str, str] = field(default_factory=dict)
    wall_s: float = 0.0
