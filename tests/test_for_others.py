"""What other repositories use of this one: the GitHub Action and the pre-commit hook of `scan`."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ACTION = ROOT / ".github" / "actions" / "scan" / "action.yml"


def action() -> dict[str, Any]:
    value: dict[str, Any] = yaml.safe_load(ACTION.read_text())
    return value


def script() -> str:
    (step,) = [one for one in action()["runs"]["steps"] if one.get("id") == "scan"]
    return str(step["run"])


def act(folder: Path, code: int, **given: str) -> tuple[int, list[str], str]:
    """Run the action's step with a stand-in for recipe-ray; return its code, words and outputs."""
    stand_in = folder / "recipe-ray"
    stand_in.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > words\nexit {code}\n')
    stand_in.chmod(0o755)
    variables = {"MODELS": "a b", "DATA": "texts.txt", "REFERENCE": "", "ARGUMENTS": ""}
    variables |= {"FAIL_ON": "suspicious", "GITHUB_OUTPUT": str(folder / "outputs"), **given}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script()],
        cwd=folder,
        env={**os.environ, **variables, "PATH": path},
        check=False,
    )
    words = (folder / "words").read_text().splitlines()
    return done.returncode, words, (folder / "outputs").read_text().strip()


def test_the_action_scans_every_model_and_writes_sarif(tmp_path: Path) -> None:
    code, words, outputs = act(tmp_path, 0, REFERENCE="clean", ARGUMENTS="--seed 3")
    assert code == 0
    assert words[:3] == ["scan", "a", "b"]
    assert words[3:] == [
        *("--data", "texts.txt", "--sarif", "recipe-ray.sarif"),
        *("--seed", "3", "--reference", "clean"),
    ]
    assert outputs == "exit-code=0"


@pytest.mark.parametrize(
    ("fail_on", "code", "fails"),
    [
        ("suspicious", 1, True),
        ("suspicious", 3, False),
        ("no-verdict", 3, True),
        ("no-verdict", 0, False),
        ("never", 1, False),
        ("never", 2, True),  # an error is no finding
        ("suspicious", 2, True),
        ("never", 4, True),
    ],
)
def test_what_fails_the_job_can_be_chosen(
    tmp_path: Path, fail_on: str, code: int, fails: bool
) -> None:
    returned, _, outputs = act(tmp_path, code, FAIL_ON=fail_on)
    assert returned == (code if fails else 0)
    assert outputs == f"exit-code={code}"


def test_a_name_cannot_become_a_command(tmp_path: Path) -> None:
    code, words, _ = act(tmp_path, 0, MODELS="$(touch-me) `x` a;b", DATA='"; false')
    assert code == 0
    assert words[:5] == ["scan", "$(touch-me)", "`x`", "a;b", "--data"]
    assert "${{" not in script()


def test_options_that_the_action_and_the_hook_use_exist() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("recipe-ray"), "scan", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
        check=True,
    )
    for option in set(re.findall(r"--[a-z-]+", script())):
        assert option in done.stdout
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"] == "recipe-ray scan"
    assert not hook["pass_filenames"]
