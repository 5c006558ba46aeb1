"""How far a search is, for those who watch the store: candidates by state, and which part runs."""

import threading
import time
from typing import Any

from recipe_ray.distributed.search.asha import CandidateEvent
from recipe_ray.experiment.search.record import LOST, Course, Ending
from recipe_ray.experiment.search.settings import Settings
from recipe_ray.stages.drivers import at_work


class Standing:
    """Counts candidates as a search goes on; asked for its note in a thread of its own."""

    def __init__(self, trials: int) -> None:
        self._trials = trials
        self._part = "starting"
        self._ended: dict[Settings, Ending] = {}
        self._running: dict[Settings, tuple[Course, float]] = {}
        self._lock = threading.Lock()

    def on_part(self, title: str) -> None:
        """Hear which part of the search begins."""
        with self._lock:
            self._part = title

    def on_candidate(self, event: CandidateEvent) -> None:
        """Hear what happened to a candidate."""
        course = event.course
        settings = course.candidate.settings
        with self._lock:
            if course.ended is None:
                self._running.setdefault(settings, (course, time.monotonic()))
            else:
                self._running.pop(settings, None)
                self._ended[settings] = course.ended

    def note(self) -> dict[str, Any]:
        """Return what the note says: counts, and the purifications that run."""
        now = time.monotonic()
        with self._lock:
            purifications = [
                (c.candidate.purify, now - since) for c, since in self._running.values()
            ]
            failed = sum(ending in LOST for ending in self._ended.values())
            ended, part = len(self._ended), self._part
        states = {
            "waiting": max(0, self._trials - ended - len(purifications)),
            "running": len(purifications),
            "done": ended - failed,
            "failed": failed,
        }
        return {
            "counted": "candidates",
            "part": part,
            "states": states,
            "left_s": None,  # who is stopped is not known before
            "running": at_work(purifications),
        }
