"""The command line: thin typer commands over the packages below."""

import atexit
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def main() -> None:
    """Run the command line; whatever ends it is said in a line, with an exit code of its own."""
    from recipe_ray.base.import_path import leave_out_working_folder

    leave_out_working_folder()  # first: all other modules are looked for along the path
    # what is imported stays: it need not be searched for cycles again and again, nor at the end
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    # we use none, and to look for them the metadata of all packages are read
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # before tokenizers and torch are imported: their own threads only hinder ours
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # threads that wait by spinning take the cores from those they wait for (docs/benchmarks.md)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from recipe_ray.base.errors import ClusterLostError, TerminatedError
    from recipe_ray.cli.exits import EndedError, explain

    words = sys.argv[1:]
    options = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in options  # also behind the command's name, where people put it
    if debug:
        words = ["--debug", *(w for w in options if w != "--debug"), *words[len(options) :]]
    signals: list[int] = []
    try:
        from recipe_ray.cli.app import app

        with _terminable(signals):
            try:
                app(words)
            finally:
                _flush()
    except SystemExit:
        raise
    except BrokenPipeError:  # who reads has enough, as `head` does
        sys.exit(1)
    except EndedError as ended:
        error, command = ended.error, ended.command
    except BaseException as before_any:
        error, command = before_any, ""
    if type(error) is KeyboardInterrupt and signals:
        error = TerminatedError()  # a library has raised its own in place of ours
    code = explain(error, command, debug=debug)
    if isinstance(error, ClusterLostError):
        sys.stdout.flush()
        os._exit(code)  # what is left of Ray would crash on the usual way out
    sys.exit(code)


@contextmanager
def _terminable(signals: list[int]) -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does: claims are released, and what follows is said.

    What was received is appended to `signals`.
    """
    from recipe_ray.base.errors import TerminatedError

    def end(signum: int, frame: object) -> None:
        signals.append(signum)
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _flush() -> None:
    """Write what was printed: here, since at Python's own end an error would be a traceback."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # it is not tried again at Python's end
        raise


__all__ = ["main"]
