"""The command line run in this process, as `recipe-ray` would run it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recipe_ray.cli import main


@dataclass(frozen=True)
class Outcome:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


class Shell:
    """Runs commands in this process, in an empty folder without data."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, capture: Any) -> None:
        self.folder, self._patch, self._capture = folder, patch, capture
        patch.chdir(folder)
        patch.delenv("RECIPE_RAY_DATA", raising=False)
        patch.setenv("COLUMNS", "200")
        patch.setenv("PYTHONSAFEPATH", "")  # a command sets it: not for the tests that follow

    def __call__(self, *words: object) -> Outcome:
        self._capture.readouterr()
        self._patch.setattr("sys.argv", ["recipe-ray", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = self._capture.readouterr()
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else 0, out, err)

    def fails(self, *words: object) -> str:
        """Run a command that must fail without a traceback; return the message."""
        outcome = self(*words)
        assert outcome.code == 2
        assert "Traceback" not in outcome.err
        return " ".join(outcome.err.split())


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    return Shell(tmp_path, monkeypatch, capsys)
