"""Trying again for a while: networks and servers come back, full disks and wrong keys do not.

The pauses double from a fifth of a second to fifteen seconds, each shortened by chance so that many
workers do not come back at once; no try begins later than a minute and a half after the first.
"""

import errno
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")
logger = logging.getLogger("recipe_ray")

_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)
_FINAL_WORDS = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY", "SIGNATURE_DOES_NOT_MATCH")
# what a mount says while its server is away; anything else of a disk stays as it is
_MOUNT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOTCONN}
_MOUNT |= {errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNABORTED, errno.EREMOTEIO}


@dataclass(frozen=True)
class Patience:
    """How long a failing operation is tried again, and how long to wait in between, in seconds."""

    total_s: float = 90.0
    first_s: float = 0.2
    longest_s: float = 15.0

    def try_again(
        self, action: Callable[[], T], is_transient: Callable[[OSError], bool], what: str
    ) -> T:
        """Return what the action returns; raise its error where that is final or time is up."""
        give_up_at = time.monotonic() + self.total_s
        pause_s = self.first_s
        while True:
            try:
                return action()
            except OSError as error:
                wait_s = pause_s * random.uniform(0.5, 1.0)
                if not is_transient(error) or time.monotonic() + wait_s > give_up_at:
                    raise
                logger.warning("%s: %s; trying again", what, error)
            time.sleep(wait_s)
            pause_s = min(2 * pause_s, self.longest_s)


def passes_remotely(error: OSError) -> bool:
    """Tell whether an object store's error may pass: all but missing things and missing rights."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return False
    return not isinstance(error, _FINAL) and not any(word in str(error) for word in _FINAL_WORDS)


def passes_locally(error: OSError) -> bool:
    """Tell whether an error of a folder may pass: those of a mount whose server is away."""
    return error.errno in _MOUNT
