"""How commands end: one line, an exit code of its own, and never a traceback without --debug."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from shell import Shell, shell

from recipe_ray.base.errors import HarmError, SpecError, TerminatedError
from recipe_ray.cli.exits import INTERNAL

__all__ = ["shell"]  # a fixture


class PanicException(BaseException):
    """Like a panic of a library in Rust: no Exception, and a class that cannot be imported."""


def deep() -> int:
    return deep() + 1


def caused(text: str) -> Exception:
    error = RuntimeError("cannot save")
    error.__cause__ = ValueError(text)
    return error


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of reports."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "recipe-ray"


def ending(error: BaseException | None, patch: pytest.MonkeyPatch, command: str = "list") -> None:
    """Let a command end with an error as soon as it starts; None: it calls itself for ever."""

    def end(*words: Any) -> None:
        if error is None:
            deep()
        else:
            raise error

    places = {"list": "listing.registries", "status": "status.present_store"}
    places |= {"sweep": "grid.set_up_logging", "debug": "grid.set_up_logging"}
    places |= {name: f"{name}.set_up_logging" for name in ("search", "evaluate")}
    place = places.get(command, "single.set_up_logging")
    patch.setattr(f"recipe_ray.cli.{place}", end)


UNEXPECTED = {
    "a fault of ours": KeyError("stage"),
    "a message of a megabyte": RuntimeError("x" * 1_000_000),
    "a message with commands to the terminal": RuntimeError("\x1b[2J\x1b]0;title\x07"),
    "the end of a file, which typer would call an abort": EOFError(),
    "a panic in Rust": PanicException("index out of bounds"),
    "no memory": MemoryError(),
    "endless recursion": None,
    "an assertion": AssertionError(),
    "a generator's end": StopIteration(),
    "text that is none": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
}


@pytest.mark.parametrize("error", UNEXPECTED.values(), ids=UNEXPECTED)
def test_what_nobody_expected_is_one_line_with_a_report(
    error: BaseException | None, shell: Shell, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(error, monkeypatch)
    ended = shell("list")
    assert ended.code == INTERNAL
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith("internal error: ")
    assert len(line) < 1500
    assert line.isprintable()
    (report,) = state.iterdir()
    assert str(report) in line
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert "Traceback" in report.read_text()
    assert report.stat().st_size <= 2**20 + 10


@pytest.mark.parametrize("words", [("--debug", "list"), ("list", "--debug"), ("list", "-h")])
def test_debug_shows_the_traceback_before_or_behind_the_command(
    words: tuple[str, ...], shell: Shell, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(KeyError("stage"), monkeypatch)
    ended = shell(*words)
    if words[-1] == "-h":
        assert (ended.code, "Usage" in ended.out) == (0, True)
        return
    assert ended.code == INTERNAL
    assert "Traceback" in ended.err
    assert not state.exists()


def test_an_error_of_the_user_keeps_its_code_and_shows_its_traceback_only_with_debug(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, code in ((SpecError("no"), 2), (HarmError("no"), 3)):
        ending(error, monkeypatch)
        plain, debugged = shell("list"), shell("list", "--debug")
        assert (plain.code, plain.err) == (code, "error: no\n")
        assert debugged.code == code
        assert "Traceback" in debugged.err


def test_what_an_error_quotes_moves_no_cursor_and_ends_somewhere(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(SpecError(f"\x1b[2J\u202e{'n' * 100_000}\r\x9b1m\n  second line"), monkeypatch)
    said = shell("list").err
    assert len(said) < 1000
    assert all(line.isprintable() for line in said.splitlines())
    assert said.endswith("\n  second line\n")


MACHINE = {
    "full": OSError(errno.ENOSPC, "No space left on device", "/place/file"),
    "over quota": OSError(errno.EDQUOT, "Disk quota exceeded", "/place/file"),
    "read-only": OSError(errno.EROFS, "Read-only file system", "/place/file"),
    "forbidden": PermissionError(errno.EACCES, "Permission denied", "/place/file"),
    "a name too long": OSError(errno.ENAMETOOLONG, "File name too long", "/place/file"),
    "full, says Rust": caused("I/O error: No space left on device (os error 28)"),
    "full, says C++": caused("[Errno 28] Error writing bytes to file: No space left on device"),
}


@pytest.mark.parametrize("error", MACHINE.values(), ids=MACHINE)
def test_what_the_machine_lacks_is_no_fault_of_ours(
    error: Exception, shell: Shell, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(error, monkeypatch)
    said = shell.fails("list")
    assert said.startswith("error: ")
    if isinstance(error, OSError):
        assert "/place/file: " in said
        assert str(error.strerror) in said
    else:
        assert "No space left on device; free some space" in said
    assert not state.exists()


def test_a_report_goes_elsewhere_if_its_folder_cannot_be_written(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    ending(KeyError("stage"), monkeypatch)
    said = shell("list").err
    (report,) = (tmp_path / "temporary").iterdir()
    assert str(report) in said
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    ended = shell("list")
    assert ended.code == INTERNAL
    assert "cannot be written" in ended.err
    assert "--debug" in ended.err


def test_only_the_latest_reports_are_kept(
    shell: Shell, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(KeyError("stage"), monkeypatch)
    for _ in range(23):
        last = shell("list").err
    names = sorted(report.name for report in state.iterdir())
    assert len(names) == 20
    assert names[-1] in last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sweep", "file"), "the same command continues"),
        (("search", "file"), "the same command continues"),
        (("debug", "file", "--cell", "a"), "the same command continues"),
        (("backdoor", "m", "--attack", "por", "--out", "o"), "the same command continues"),
        (("evaluate", "m", "--task", "t"), "the same command begins again"),
        (("list",), "the same command begins again"),
        (("status",), "the same command begins again"),
    ],
)
def test_ctrl_c_and_sigterm_say_what_the_same_command_does_next(
    words: tuple[str, ...], said: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(KeyboardInterrupt(), monkeypatch, words[0])
    ended = shell(*words)
    assert (ended.code, ended.out) == (130, "")
    assert ended.err.startswith("interrupted: ")
    assert said in ended.err
    ending(TerminatedError(), monkeypatch, words[0])
    ended = shell(*words)
    assert (ended.code, ended.out) == (143, "")
    assert ended.err.startswith("terminated: ")
    assert said in ended.err


@pytest.mark.parametrize(("given", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    given: str | None, kept: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    shell("--version")
    assert os.environ["OMP_WAIT_POLICY"] == kept


WITH_RAY = """
import sys, time
from recipe_ray.cli import grid, main
from recipe_ray.distributed.cluster import connected
from recipe_ray.experiment.spec import Launch

def sweep(*words):
    with connected("local", Launch(object_store_gb=0.1)):
        print("connected", flush=True)
        try:
            time.sleep(120)
        except KeyboardInterrupt:
            raise KeyboardInterrupt  # as Tune does

grid.set_up_logging = sweep
sys.argv = ["recipe-ray", "sweep", "file"]
main()
"""


def test_sigterm_ends_a_sweep_in_a_line_though_ray_takes_that_signal_for_itself() -> None:
    words = [sys.executable, "-c", WITH_RAY]
    with subprocess.Popen(words, stdout=PIPE, stderr=PIPE, text=True) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "connected\n"
        driver.send_signal(signal.SIGTERM)
        said = driver.communicate(timeout=60)[1]
    kept = "what is finished is kept in the store; the same command continues from there"
    assert (driver.returncode, said) == (143, f"terminated: {kept}\n")


def test_a_closed_pipe_ends_a_command_quietly() -> None:
    command = f"{sys.executable} -m recipe_ray list --json | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert (done.stdout[:1], done.stderr) == ("{", "")


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_shells_complete_commands(name: str) -> None:
    variables = {"_RECIPE_RAY_COMPLETE": f"complete_{name}", "COMP_WORDS": "recipe-ray s"}
    variables |= {"COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "recipe-ray s"}
    variables |= {"_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    code = "import sys; sys.argv = ['recipe-ray']; from recipe_ray.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False
    )
    for command in ("scan", "sweep", "search", "status"):
        assert command in done.stdout
    assert "purify" not in done.stdout
