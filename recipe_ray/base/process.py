"""Which process this is, written so that another can tell whether it is still there.

Only a process of the same machine (and container) can be judged; of others nothing is known. A
number that was given to a new process does not count as the old process. Nor does a killed process
whose parent has not collected it yet.
"""

import os
import platform
import re
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

import psutil

# what `str` writes; Linux gives no process a number of more than seven digits
_WRITTEN = re.compile(r"([^-]+)-([0-9]{1,7})-([0-9]{1,20})")


@dataclass(frozen=True)
class Process:
    """One process: its machine, its number there, and when it started (0.01 s after boot)."""

    machine: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.machine}-{self.pid}-{self.started}"

    @classmethod
    def this(cls) -> "Process":
        """Return this process."""
        return _known(os.getpid())

    @classmethod
    def parse(cls, text: str) -> "Process | None":
        """Read back what `str` wrote; None for anything else."""
        found = _WRITTEN.fullmatch(text)
        return cls(found[1], int(found[2]), found[3]) if found else None

    @property
    def is_local(self) -> bool:
        """Whether it is, or was, a process of this machine and container."""
        return self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Whether this machine knows it to be dead; False if nothing is known."""
        if not self.is_local:
            return False
        try:
            process = psutil.Process(self.pid)
            dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
            return dead or _started(process) != self.started
        except psutil.ZombieProcess:
            return True
        except psutil.NoSuchProcess:
            return not _takes_signals(self.pid)
        except psutil.AccessDenied:
            return False


@cache  # by number, since a fork is another process
def _known(pid: int) -> Process:
    return Process(_machine(), pid, _started(psutil.Process(pid)))


def _takes_signals(pid: int) -> bool:
    # a /proc mounted with hidepid shows no process of another user
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _started(process: psutil.Process) -> str:
    # psutil adds the time of boot, which moves if somebody sets the clock
    return str(round(100 * (process.create_time() - psutil.boot_time())))


def _machine() -> str:
    # a host's name is not enough: many are called localhost, and containers count from one
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        names = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        names = platform.node()
    return sha256(names.encode()).hexdigest()[:12]
