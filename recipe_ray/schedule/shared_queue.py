"""The queue of a driver that may not be alone: it leaves alone what another driver builds.

A stage is claimed before it starts. A stage that another driver on the store holds is set aside
until that claim is gone, and is then committed, failed, or free again. It does not use Ray.
"""

import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from recipe_ray.schedule.stage_queue import StageQueue
from recipe_ray.stages.stage import Stage
from recipe_ray.store.claims import Claims
from recipe_ray.store.store import Store

LOOK_EVERY_S = 2.0  # a listing of the claims, for all stages together


class Listener(Protocol):
    """Hears what happens to stages elsewhere, and tells the queue how they ended."""

    def left_to(self, stage: Stage, driver: str) -> None:
        """Hear that another driver makes a stage."""

    def taken_over(self, stage: Stage) -> None:
        """Hear that others counted this driver as dead while it ran a stage: it must stop that."""

    def committed_elsewhere(self, stage: Stage) -> None:
        """Hear that another driver committed a stage."""

    def failed_elsewhere(self, stage: Stage, message: str) -> None:
        """Hear that a stage failed for another driver since this one started."""


@dataclass
class SharedQueue:
    """Gives out the queue's stages, claimed, and follows those that other drivers hold."""

    queue: StageQueue
    claims: Claims
    store: Store
    listener: Listener
    look_every_s: float = LOOK_EVERY_S
    _held: dict[str, str] = field(default_factory=dict, init=False)
    _looked: float = field(default=float("-inf"), init=False)
    _known: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        # an earlier failure is tried again; its own time tells them apart, not our clock
        self._known = {key: note["time"] for key, note in self.store.failures().items()}

    @property
    def is_over(self) -> bool:
        """Whether every stage is committed or failed, here or elsewhere."""
        return self.queue.is_over

    def next_batch(self) -> list[Stage]:
        """Return what may start now in one process, claimed; empty if there is nothing."""
        self._look()
        while batch := self.queue.next_batch():
            if claimed := [stage for stage in batch if self._claim(stage)]:
                return claimed
        return []

    def _claim(self, stage: Stage) -> bool:
        if stage.key in self._held or not self.claims.take(stage.key):
            self.queue.set_aside(stage)
            self.listener.left_to(stage, self._held.get(stage.key, "another"))
            return False
        # another may have done it since the last check; a driver alone need not ask
        if self.claims.met_others and self._settled(stage):
            self.claims.release(stage.key)
            return False
        return True

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < self.look_every_s:
            return
        self._looked = now
        self._held = self.claims.held()
        for stage in self.queue.running:
            if stage.key in self.claims.lost:
                self.queue.set_aside(stage)
                self.listener.taken_over(stage)
        for stage in self.queue.elsewhere:
            if stage.key not in self._held and not self._settled(stage):
                self.queue.take_back(stage)

    def _settled(self, stage: Stage) -> bool:
        """Tell whether another driver has committed or failed a stage, and say so."""
        if self.store.has(stage.artifact):
            self.listener.committed_elsewhere(stage)
            return True
        note = self.store.failure(stage.key)
        if note is None or note["time"] == self._known.get(stage.key):
            return False
        self.listener.failed_elsewhere(stage, f"{note['error']}: {note['message']}")
        return True
