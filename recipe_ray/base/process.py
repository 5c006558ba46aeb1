"""Which process this is, written so that another can tell whether it is still there.

Only a process of the same machine (and container) can be judged; of others nothing is known. A
number that was given to a new process, and a killed one whose parent has not asked for it yet, are
not taken for the old one.
"""

import os
import platform
import re
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

# what `str` writes; Linux gives no process a number of more than seven digits
_WRITTEN = re.compile(r"([^-]+)-([0-9]{1,7})-([0-9]{1,20})")


@dataclass(frozen=True)
class Process:
    """One process: its machine, its number there, and when the kernel says it started."""

    machine: str
    pid: int
    started: str

    def __str__(self) -> str:
        return f"{self.machine}-{self.pid}-{self.started}"

    @classmethod
    def this(cls) -> "Process":
        """Return the process that asks."""
        state = _state(os.getpid())
        return cls(_machine(), os.getpid(), state[1] if state else "0")

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
        """Whether this machine knows it to be dead; False where nothing is known."""
        if not self.is_local:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass  # somebody else's
        state = _state(self.pid)
        return state is not None and (state[0] in "ZX" or state[1] != self.started)


def _state(pid: int) -> tuple[str, str] | None:
    # Linux: the fields after the name, which may hold anything, in brackets
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], fields[19]


def _machine() -> str:
    # a host's name is not enough: many are called localhost, and containers count from one
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        names = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        names = platform.node()
    return sha256(names.encode()).hexdigest()[:12]
