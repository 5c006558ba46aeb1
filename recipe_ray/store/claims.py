"""Who builds which stage, if several drivers work on one store.

    drivers/<driver>.json   a driver's lease: a number that grows while it lives, and what people
                            see of it (`schedule/sweep_progress.py: DriverNote`)
    claims/<key>.<driver>   this driver builds this stage, for as long as it has its lease
    claims/gc.<driver>      this one deletes what no plan names (`upkeep.py`)

A claim has its driver in its name. So a driver that removes the claims of a dead one cannot delete
another's by mistake: no store deletes a file on the condition that it is still the same. To claim,
a driver first writes its file and then lists the files. If two drivers write, at least one sees
both files, and a driver that sees the other's withdraws. That is safe if a written file is listed
at once: local disks, S3, GCS, Azure; over NFS too, whose clients list a folder again after they
changed it.

No claim is judged by comparing clocks. A driver is dead if its lease has not changed for `lease_s`
of the observer's own time, or if its process, which its name tells, is gone from the observer's
machine. A driver that was stopped for that long and then continues finds that its claims were
voided (`lost`), and must stop what it builds. Until it looks, two may build one stage; the second
commit is discarded.
"""

import json
import logging
import os
import platform
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from recipe_ray.base.errors import StoreError
from recipe_ray.base.process import Process
from recipe_ray.store.files import Files
from recipe_ray.store.leftovers import FOREIGN_AGE_S
from recipe_ray.store.notes import Note, pass_over, read_note, read_notes

CLAIMS, DRIVERS = "claims", "drivers"
DELETING = "gc"  # who holds this, which is no stage's key, deletes what no plan names
DELETING_LEASE_S = 60.0
BEATS_A_LEASE = 6
LONGEST_BEAT_S = 5.0  # people watch, too
_LOOK_EVERY_S = 1.0
# if two claim at once, one withdraws as soon as it looks; the other waits for that
_PAUSES_S = (0.05, 0.2, 0.5, 0.0)
logger = logging.getLogger("recipe_ray")


class Claims:
    """One driver's lease and claims; as a context manager it releases all of them at its end.

    `told` returns what people see of the driver. A thread asks for it at each renewal.
    """

    def __init__(self, files: Files, lease_s: float, told: Callable[[], dict[str, Any]]) -> None:
        self._files = files
        self._lease_s = lease_s
        self._beat_s = min(LONGEST_BEAT_S, lease_s / BEATS_A_LEASE)
        self._told = told
        self._last_told: dict[str, Any] = {}
        self._number = 0
        started = datetime.now(UTC).isoformat()
        self._who = {"host": platform.node(), "pid": os.getpid(), "started": started}
        self.driver = f"{Process.this()}-{uuid4().hex[:8]}"
        self.met_others = False  # whether another driver was ever seen to hold anything
        self.lost: set[str] = set()  # held once, and voided by others who counted us as dead
        self._mine: set[str] = set()
        self._signs = _Signs(files, lease_s)
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="claims", daemon=True)

    def __enter__(self) -> Self:
        self._remove_dead()
        self.renew()
        self._heart.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._heart.join(self._beat_s)  # no longer: the store may be slow to fail
        try:
            for key in sorted(self._mine):
                self.release(key)
            self._files.remove(_lease_path(self.driver))
        except StoreError as ours:  # an error that ends the sweep must be heard; claims expire
            logger.warning("claims were left behind: %s", ours)

    def take(self, key: str) -> bool:
        """Claim a stage; False if another living driver has it."""
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
        """Release a stage: it is committed, failed, or given up."""
        self._files.remove(self._path(key))
        self._mine.discard(key)

    def held(self) -> dict[str, str]:
        """Return the keys that other living drivers hold, and who; the dead ones' are freed.

        It costs one listing, and one small file per driver that holds anything.
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
            self._files.remove(_lease_path(driver))
        # the smallest: two may be listed until one of them yields
        return {key: driver for key, _, driver in reversed(listed) if driver in alive}

    def living(self) -> list[str]:
        """Return the other drivers that live, whether they hold anything or not.

        One on another machine is watched until its lease changes, `lease_s` seconds at most.
        """
        while True:
            listed = [name.removesuffix(".json") for name in self._files.names(DRIVERS)]
            alive = [one for one in listed if one != self.driver and self._signs.show_life(one)]
            sure = [one for one in alive if self._signs.is_sure(one)]
            if sure or not alive:
                return sure
            time.sleep(min(self._beat_s, _LOOK_EVERY_S))

    def who(self, driver: str) -> str:
        """Return what people know another driver by: the process and the host of its lease."""
        lease = read_note(self._files, DRIVERS, driver, Note) or {}
        if not {"pid", "host"} <= lease.keys():
            return "another driver"
        return f"another driver, process {lease['pid']} on {lease['host']}"

    def renew(self) -> None:
        """Write the lease: what people see, under a number that grows."""
        self._number += 1
        try:
            self._last_told = self._told()
        except Exception:  # an error in what people see must not cost the claims
            logger.exception("what `status` shows of this driver is out of date")
        about = {**self._last_told, **self._who, "number": self._number}
        lease = {**about, "time": datetime.now(UTC).isoformat()}
        self._files.write(_lease_path(self.driver), json.dumps(lease).encode())

    def _path(self, key: str) -> str:
        return f"{CLAIMS}/{key}.{self.driver}"

    def _remove_dead(self) -> None:
        """Remove leases that nobody renews and that hold nothing; `held` judges the others."""
        listed = self._files.names(DRIVERS)
        holders = {f"{name.partition('.')[2]}.json" for name in self._files.names(CLAIMS)}
        notes = read_notes(self._files, DRIVERS, Note)
        for name in listed:
            driver = name.removesuffix(".json")
            if name in holders or _may_live(driver, notes.get(driver)):
                continue
            try:
                self._files.remove(f"{DRIVERS}/{name}")
            except StoreError as problem:  # it disturbs nobody
                pass_over("a file that is not a driver's lease", problem)

    def _beat(self) -> None:
        while not self._ended.wait(self._beat_s):
            try:
                self.renew()
            except StoreError as error:  # the running stages will say so, if it lasts
                logger.warning("claims cannot be renewed: %s", error)


class _Signs:
    """What was last seen of other drivers, and for how long it has not changed."""

    def __init__(self, files: Files, lease_s: float) -> None:
        self._files = files
        self._lease_s = lease_s
        self._seen: dict[str, tuple[bytes, float, float]] = {}  # sign, last look, silence in s
        self._changed: set[str] = set()

    def show_life(self, driver: str) -> bool:
        """Tell whether a driver lives, as far as can be known."""
        sign = self._files.read(_lease_path(driver))
        process = _process_of(driver)
        if sign is None or (process is not None and process.is_gone):
            return False
        now = time.monotonic()
        before, looked, silent_s = self._seen.get(driver, (sign, now, 0.0))
        # while nobody looked (the store was down, the laptop asleep), silence says nothing
        silent_s += min(now - looked, self._lease_s / BEATS_A_LEASE)
        if sign != before:
            silent_s = 0.0
            self._changed.add(driver)
        self._seen[driver] = (sign, now, silent_s)
        return silent_s < self._lease_s

    def is_sure(self, driver: str) -> bool:
        """Tell whether the life of a driver was seen: its process, or a new number in its lease."""
        process = _process_of(driver)
        return driver in self._changed or (process is not None and process.is_local)


def await_deletions(files: Files) -> None:
    """Return when nobody deletes from the store (`DELETING`); a dead one is not waited for."""
    signs, told = _Signs(files, DELETING_LEASE_S), False
    while True:
        drivers = [
            name.partition(".")[2]
            for name in files.names(CLAIMS)
            if name.startswith(f"{DELETING}.")
        ]
        if not any(signs.show_life(driver) for driver in drivers):
            return
        if not told:
            logger.warning("waiting for `recipe-ray store gc`, which deletes from this store now")
            told = True
        time.sleep(_LOOK_EVERY_S / 2)


def of_the_dead(files: Files) -> list[str]:
    """Return the claims and leases of drivers that are dead, as far as this machine can know.

    One of another machine counts as dead if its lease is a day old, or missing.
    """
    leases = {name: name.removesuffix(".json") for name in files.names(DRIVERS)}
    claims = {name: name.partition(".")[2] for name in files.names(CLAIMS) if "." in name}
    notes = read_notes(files, DRIVERS, Note)
    drivers = {*leases.values(), *claims.values()}
    dead = {one for one in drivers if not _may_live(one, notes.get(one))}
    return [
        *(f"{DRIVERS}/{name}" for name, driver in leases.items() if driver in dead),
        *(f"{CLAIMS}/{name}" for name, driver in claims.items() if driver in dead),
    ]


def _lease_path(driver: str) -> str:
    return f"{DRIVERS}/{driver}.json"


def _process_of(driver: str) -> Process | None:
    return Process.parse(driver.rpartition("-")[0])


def _may_live(driver: str, lease: dict[str, Any] | None) -> bool:
    """Tell whether a driver may still be there; `lease` is None if it is damaged."""
    process = _process_of(driver)
    if process is not None and process.is_local:
        return not process.is_gone
    if lease is None:
        return False
    age = datetime.now(UTC) - datetime.fromisoformat(lease["time"])
    return age.total_seconds() < FOREIGN_AGE_S
