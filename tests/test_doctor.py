"""`recipe-ray doctor` says what a machine has, and what is to be mended."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from shell import Shell, shell

from recipe_ray.cli import doctor

__all__ = ["shell"]  # a fixture


def found(shell: Shell, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = shell("doctor", "--json", *words)
    return done.code, {one["what"]: one for one in json.loads(done.out)}


def test_a_machine_that_can_run_it_is_ready(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "RAY_ADDRESS", "RECIPE_RAY_DATA"):
        monkeypatch.delenv(name, raising=False)
    code, by_what = found(shell)
    assert code == 0
    assert {one["level"] for one in by_what.values()} <= {"ok", "note"}
    assert by_what["cores"]["said"].startswith(f"{len(os.sched_getaffinity(0))} ")
    assert "TFLOP/s" in by_what["speed"]["said"]
    assert not (shell.folder / "runs").exists()


@pytest.mark.parametrize(
    ("package", "here", "said"),
    [
        ("torch", "2.9.1", "CVE-2026-24747"),
        ("transformers", "5.2.0", "CVE-2026-4372"),
        ("ray", "2.59.0", ">=2.60"),
        ("pyarrow", "19.0.0", "pip install 'pyarrow>=20'"),
    ],
)
def test_a_version_that_will_not_do_is_a_problem_with_its_cure(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, package: str, here: str, said: str
) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: here if name == package else real(name))
    code, by_what = found(shell)
    assert code == 1
    assert by_what[package]["level"] == "problem"
    assert said in by_what[package]["said"]


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        ("RAY_TMPDIR", "/" + "x" * 60, "RAY_TMPDIR"),
        ("RECIPE_RAY_DATA", "/nowhere", "data"),
    ],
)
def test_an_environment_that_will_fail_later_is_a_problem_now(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, what: str
) -> None:
    monkeypatch.setenv(variable, value)
    code, by_what = found(shell)
    assert (code, by_what[what]["level"]) == (1, "problem")


def test_the_disk_of_the_store_is_looked_at_where_it_will_be(shell: Shell) -> None:
    _, by_what = found(shell, "--store", "far/away/store")
    assert by_what["store"]["said"].startswith("far/away/store: ")
    assert not Path("far").exists()


def test_a_store_in_the_cloud_is_not_opened(shell: Shell) -> None:
    code, by_what = found(shell, "--store", "s3://bucket/store")
    assert "cloud" in by_what["store"]["said"]
    assert code == 0


def test_what_was_found_is_one_line_each_and_said_once(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = [SimpleNamespace(mountpoint=doctor.SHARED)] * 2  # as in some containers
    monkeypatch.setattr("psutil.disk_partitions", lambda **how: twice)
    done = shell("doctor")
    assert done.out.rstrip().endswith("ready")
    assert "bf16" in done.out
    assert done.out.count("shared memory") == 1
