"""The child of `--sandbox`: it gives up the network, reads a model and writes it again.

It is told in JSON what to read (`sandbox.py`), and prints JSON: notes, or an error. It isolates
itself before torch or the model is touched, and ends with an error if it cannot.
"""

import ctypes
import errno
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

_NEW_USER, _NEW_NETWORK = 0x10000000, 0x40000000  # of linux/sched.h
_NO_NEW_PRIVILEGES = 38  # of linux/prctl.h


class NotIsolatedError(Exception):
    """This machine does not give what is needed to isolate a process."""


def leave_network() -> None:
    """Move this process into a network of its own, in which there is no interface but loopback.

    Raises NotIsolatedError, which says what is missing.
    """
    if sys.platform != "linux":
        raise NotIsolatedError(
            f"it needs the namespaces of Linux; this machine runs {sys.platform}"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    failed = 0
    # root may do without the first
    for flags in (_NEW_USER | _NEW_NETWORK, _NEW_NETWORK):
        if libc.unshare(flags) == 0:
            break
        failed = failed or ctypes.get_errno()
    else:
        why = os.strerror(failed)
        limit = "; user.max_user_namespaces is too low" if failed == errno.ENOSPC else ""
        raise NotIsolatedError(
            f"unshare: {why}{limit}. It needs user namespaces: sysctl kernel.unprivileged_userns_"
            "clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), or a "
            "container whose seccomp profile allows unshare"
        )
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    lines = Path("/proc/self/net/dev").read_text().splitlines()[2:]
    others = sorted({line.partition(":")[0].strip() for line in lines} - {"lo"})
    if others:
        raise NotIsolatedError(f"the network is still there: {', '.join(others)}")


def limit(memory: int, written: int, seconds: int) -> None:
    """Bound what this process may take from here on: further memory, files, processor time."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    whole = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (whole, whole))
    resource.setrlimit(resource.RLIMIT_FSIZE, (written, written))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def convert(asked: dict[str, Any]) -> list[str]:
    """Read the model as any command does, write it again, and return notes of what was left out."""
    from recipe_ray.api.arguments import parse_model
    from recipe_ray.models.config_fields import explained_by

    limit(asked["memory"], asked["written"], asked["seconds"])
    with explained_by(asked["folder"], "it cannot be converted"):
        how = {name: asked[name] for name in ("allow_pickle", "ignore_adapter")}
        model = parse_model(asked["folder"], revision=None, **how)
        notes = [*model.left_out(), *model.drawn_parts()]
        target = Path(asked["target"])
        model.load().save(target)
        return [*notes, *model.give_back(target)]


def main() -> None:
    """Do what the parent asks, and say how it went."""
    from recipe_ray.base.errors import UserError

    asked = json.loads(sys.argv[1])
    try:
        leave_network()
        said: dict[str, Any] = {"notes": convert(asked)}
    except NotIsolatedError as error:
        said = {"error": f"nothing was opened, since no process can be isolated here: {error}"}
    except UserError as error:
        said = {"error": str(error)}
    print(json.dumps(said))
    sys.exit(2 if "error" in said else 0)


if __name__ == "__main__":
    main()
