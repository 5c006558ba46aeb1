"""Who builds which stage, where several drivers work on one store.

    claims/<key>.<driver>     this driver builds this stage
    claims/drivers/<driver>   JSON: its process, and a number that grows while it lives

A claim has its driver in its name, so that whoever frees those of the dead cannot delete another's
by mistake: no store deletes a file on the condition that it is still the same. So a claim is
written first and looked at afterwards: of two that write, at least one sees both, and whoever sees
the other's withdraws. That is safe if a written file is listed at once: local disks, S3, GCS,
Azure; over NFS too, whose clients list a folder again after they changed it.

Clocks are never compared. A driver is dead when its number has not grown for a lease of the
observer's own time, or when its process is gone from the observer's machine. One that was stopped
for a lease and goes on finds that its claims were voided (`lost`), and is to stop what it builds.
Until it looks two may build one stage; the second commit is discarded.
"""

import json
import logging
import threading
import time
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from recipe_ray.base.errors import StoreError
from recipe_ray.base.process import Process
from recipe_ray.store.files import Files

CLAIMS, DRIVERS = "claims", "claims/drivers"
BEATS_A_LEASE = 6
# of two that claim at once one withdraws as soon as it looks; the other waits for that
_PAUSES_S = (0.05, 0.2, 0.5, 0.0)
logger = logging.getLogger("recipe_ray")


class Claims:
    """One driver's claims; use it as a context manager, which lets go of all of them at its end."""

    def __init__(self, files: Files, lease_s: float) -> None:
        self._files = files
        self._lease_s = lease_s
        self._process = Process.this()
        self.driver = f"{self._process}-{uuid4().hex[:8]}"
        self.met_others = False  # whether another driver was ever seen to hold anything
        self.lost: set[str] = set()  # held once, and voided by others who took us for dead
        self._mine: set[str] = set()
        self._signs = _Signs(files, lease_s)
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Self:
        self._write_sign(0)
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._heart.join(self._lease_s / BEATS_A_LEASE)
        try:
            for key in sorted(self._mine):
                self.release(key)
            self._files.remove(f"{DRIVERS}/{self.driver}")
        except StoreError as ours:  # whatever ends the sweep must be heard; claims expire
            logger.warning("claims were left behind: %s", ours)

    def take(self, key: str) -> bool:
        """Claim a stage; False where another living driver has it."""
        self._files.write(self._path(key), b"")
        for pause_s in _PAUSES_S:
            others = self.held().get(key)
            if others is None:
                self._mine.add(key)
                self.lost.discard(key)
                return True
            if others < self.driver:
                break
            time.sleep(pause_s)
        self._files.remove(self._path(key))
        return False

    def release(self, key: str) -> None:
        """Let go of a stage: it is committed, failed, or given up."""
        self._files.remove(self._path(key))
        self._mine.discard(key)

    def held(self) -> dict[str, str]:
        """Return the keys that other living drivers hold, and who; what the dead held is freed.

        One listing, and one small file a driver that holds anything.
        """
        listed = [name.partition(".") for name in self._files.names(CLAIMS) if "." in name]
        others = {driver for _, _, driver in listed if driver != self.driver}
        voided = self._mine - {key for key, _, driver in listed if driver == self.driver}
        self._mine -= voided
        self.lost |= voided
        self.met_others |= bool(others)
        alive = {driver for driver in others if self._signs.show_life(driver)}
        for key, _, driver in listed:
            if driver in others - alive:
                logger.info("the claim of a dead driver (%s) on %s is void", driver, key)
                self._files.remove(f"{CLAIMS}/{key}.{driver}")
        for driver in others - alive:
            self._files.remove(f"{DRIVERS}/{driver}")
        # the smallest: two may be listed while they find out who yields
        return {key: driver for key, _, driver in reversed(listed) if driver in alive}

    def _path(self, key: str) -> str:
        return f"{CLAIMS}/{key}.{self.driver}"

    def _write_sign(self, number: int) -> None:
        sign = {"process": str(self._process), "number": number}
        self._files.write(f"{DRIVERS}/{self.driver}", json.dumps(sign).encode())

    def _beat(self) -> None:
        number = 1
        while not self._ended.wait(self._lease_s / BEATS_A_LEASE):
            try:
                self._write_sign(number)
            except StoreError as error:  # the stages that run will say so, if it lasts
                logger.warning("claims cannot be renewed: %s", error)
            number += 1


class _Signs:
    """What was last seen of other drivers, and for how long it has not changed."""

    def __init__(self, files: Files, lease_s: float) -> None:
        self._files = files
        self._lease_s = lease_s
        self._seen: dict[str, tuple[bytes, float, float]] = {}  # sign, when looked at, silent for

    def show_life(self, driver: str) -> bool:
        """Tell whether a driver lives, as far as can be known."""
        sign = self._files.read(f"{DRIVERS}/{driver}")
        if sign is None:
            return False
        process = Process.parse(str(_parsed(sign).get("process")))
        if process is not None and process.is_gone:
            return False
        now = time.monotonic()
        before, looked, silent_s = self._seen.get(driver, (sign, now, 0.0))
        # while nobody looked (the store was down, the laptop asleep), silence says nothing
        silent_s += min(now - looked, self._lease_s / BEATS_A_LEASE)
        if sign != before:
            silent_s = 0.0
        self._seen[driver] = (sign, now, silent_s)
        return silent_s < self._lease_s


def _parsed(sign: bytes) -> dict[str, Any]:
    # what is damaged names no process: silence for a lease tells that its driver is dead
    try:
        parsed = json.loads(sign)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
