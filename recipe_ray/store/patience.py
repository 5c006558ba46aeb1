"""Trying again while the place of a store is away, and what to say of its errors.

Operations are tried again for a while: networks and servers come back, full disks and wrong keys do
not. The pauses double from a fifth of a second to fifteen seconds. Each is shortened at random so
that many workers do not come back at once. No try begins later than a minute and a half after the
first.
"""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from recipe_ray.base.errors import StoreError

logger = logging.getLogger("recipe_ray")
T = TypeVar("T")

# errors of a mount while its server is away; other errors of a disk do not pass
_MOUNT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN}
_MOUNT |= {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNABORTED, errno.EREMOTEIO}


@dataclass(frozen=True)
class Patience:
    """How long a failing operation is tried again, and how long to wait in between, in seconds."""

    total_s: float = 90.0
    first_s: float = 0.2
    longest_s: float = 15.0

    def try_again(
        self,
        action: Callable[[], T],
        is_transient: Callable[[Exception], bool],
        what: str,
        reason: Callable[[Exception], str] = str,
    ) -> T:
        """Return what the action returns; raise its error if that is final or time is up."""
        give_up_at = time.monotonic() + self.total_s
        pause_s = self.first_s
        while True:
            try:
                return action()
            except Exception as error:
                wait_s = pause_s * random.uniform(0.5, 1.0)
                if not is_transient(error) or time.monotonic() + wait_s > give_up_at:
                    raise
                logger.warning("%s: %s; trying again", what, reason(error))
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, self.longest_s)


def passes_locally(error: Exception) -> bool:
    """Tell whether an error of a folder may pass: those of a mount whose server is away."""
    return isinstance(error, OSError) and error.errno in _MOUNT


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


@contextmanager
def explained(verb: str, shown: str) -> Iterator[None]:
    """Turn an operating system error into a `StoreError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {verb} {shown}: {_advice(error)}") from error


def _advice(error: OSError) -> str:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return (
            f"{reason}. Free some space (or use another store) and start the same command "
            "again: what is committed is kept, and the rest is done again"
        )
    if error.errno in _READ_ONLY:
        return f"{reason}. The store is read-only for this user; give write access or another store"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"{reason}. A file is in the way where a folder is needed"
    return reason
