"""Which sweeps run on a store, and how far they are: a note of each driver, renewed as it lives.

For people who watch. Whoever drives a sweep decides by nothing of this.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from recipe_ray.stages.location import reopen_files
from recipe_ray.stages.notes import json_path, read_notes
from recipe_ray.stages.stage import Stage
from recipe_ray.stages.store import Store

_FOLDER = "drivers"
BEAT_S = 5.0
# a note this old is of a driver that was killed, or lost the store; also a stage's progress note
STALE_S = 60.0
STALL_S = 60.0  # longer than a process takes to start on a busy machine


class DriverNotes:
    """The notes of all drivers in one store."""

    def __init__(self, store: Store) -> None:
        self._files = reopen_files(store.uri)

    def write(self, driver: str, note: dict[str, Any]) -> None:
        """Write or renew one driver's note."""
        whole = {"driver": driver, **note, "time": datetime.now(UTC).isoformat()}
        self._files.write(json_path(_FOLDER, driver), json.dumps(whole).encode())

    def remove(self, driver: str) -> None:
        """Remove a driver's note: its sweep is over."""
        self._files.remove(json_path(_FOLDER, driver))

    def all(self) -> list[dict[str, Any]]:
        """Return all notes, in the order of their drivers' ids; judge by `age_s` who lives."""
        # by the file's name, not by what the note says: it becomes a path when the note is removed
        return [{**note, "driver": name} for name, note in read_notes(self._files, _FOLDER).items()]

    def living(self) -> list[dict[str, Any]]:
        """Return the notes that are fresh."""
        return [note for note in self.all() if age_s(note) < STALE_S]

    def remove_dead(self, experiment: str) -> None:
        """Remove what killed drivers of this experiment left, where the store can be read."""
        for note in self.all():
            if note.get("experiment") == experiment and age_s(note) >= STALE_S:
                self.remove(str(note["driver"]))


def at_work(running: Iterable[tuple[Stage, float]]) -> list[dict[str, Any]]:
    """Return what a note says of stages that run, each with the seconds since it began."""
    return [
        {"key": s.key, "kind": s.name, "label": s.label(), "running_s": round(running_s, 1)}
        for s, running_s in running
    ]


def stalled_s(notes: Iterable[dict[str, Any]]) -> float | None:
    """Return for how many seconds no living driver has run anything while stages wait.

    None if something runs, or did within the last `STALL_S`.
    """
    idle = [float(note.get("idle_s", 0.0)) for note in notes]
    return min(idle) if idle and min(idle) >= STALL_S else None


def age_s(note: dict[str, Any]) -> float:
    """Return the seconds since a note was written, by this machine's clock."""
    return (datetime.now(UTC) - datetime.fromisoformat(note["time"])).total_seconds()
