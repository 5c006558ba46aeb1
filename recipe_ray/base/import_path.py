"""Where modules are imported from: never from the current folder.

A model folder is foreign. Python puts the current folder first on its path for `python -m`, and an
empty part of PYTHONPATH means it, too. A `random.py` there would be run in place of Python's own.
This module imports only what is loaded already, because it must run before anything else.
"""

import os
import sys

# for every process that we start, and those that it starts
SAFE = ("PYTHONSAFEPATH", "1")


def leave_out_working_folder() -> None:
    """Take the working folder off this process's path, and off that of all that it starts.

    It stays if it was named in full (PYTHONPATH, a .pth file), or holds this package.
    """
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [path for path in named if path.startswith(os.sep)]
    if "PYTHONPATH" in os.environ:
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)
    os.environ.update([SAFE])
    here = os.path.realpath(os.curdir)
    ours = os.path.realpath(f"{sys.modules['recipe_ray'].__path__[0]}/..")
    if here in (ours, *map(os.path.realpath, kept)):
        return
    # entries after Python's own modules cannot shadow them
    own = os.__file__.rpartition(os.sep)[0]
    ahead = sys.path.index(own) if own in sys.path else len(sys.path)
    sys.path[:ahead] = [path for path in sys.path[:ahead] if os.path.realpath(path) != here]
