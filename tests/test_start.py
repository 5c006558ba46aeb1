"""Commands that compute nothing start without the libraries that compute."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from recipe_ray.cli.report import KINDS, registries
from recipe_ray.store.store import ArtifactId, Store

HEAVY = (
    "torch",
    "transformers",
    "ray",
    "datasets",
    "open_clip",
    "torchvision",
    "pandas",
    "safetensors",
    "huggingface_hub",
    "pyarrow",
)
START = """
import sys
from recipe_ray.cli import main
try:
    main()
except SystemExit as end:
    print(end.code or 0)
else:
    print(0)
print(*sys.modules)
"""


def started(*words: object) -> tuple[int, set[str], str]:
    """Run a command as `recipe-ray` does; return its exit code, the heavy modules, what it said."""
    code = [sys.executable, "-c", START, *map(str, words)]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    *_, exit_code, modules = done.stdout.splitlines()
    return int(exit_code), set(modules.split()) & set(HEAVY), done.stdout + done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["sweep", "--help"],
        ["purify", "--help"],
        ["list"],
        ["list", "--json"],
        *(["list", kind] for kind in KINDS),
    ],
    ids=" ".join,
)
def test_what_only_tells_of_the_program_loads_nothing_that_computes(words: list[str]) -> None:
    assert started(*words)[:2] == (0, set())


@pytest.mark.parametrize(
    "words",
    [
        ["swep"],
        ["--verison"],
        ["sweep"],
        ["sweep", "file.yaml", "--cpus", "2"],
        ["purify", "model"],
        ["evaluate"],
        ["search"],
        ["list", "model"],
        ["status", "--interval", "often"],
    ],
    ids=" ".join,
)
def test_a_usage_error_loads_nothing_that_computes(words: list[str]) -> None:
    code, loaded, said = started(*words)
    assert (code, loaded) == (2, set())
    assert "rror" in said


def test_every_command_says_in_the_help_what_it_does() -> None:
    said = started("--help")[2]
    for command in ("purify", "backdoor", "evaluate", "sweep", "search", "plan", "debug", "report"):
        assert command in said
    assert "Show what is done, running and failed in a store" in " ".join(said.split())


@pytest.mark.parametrize("options", [[], ["--json"], ["--watch"]], ids=str)
def test_status_reads_a_store_with_pyarrow_and_nothing_that_computes(
    tmp_path: Path, options: list[str]
) -> None:
    store = Store.open(tmp_path / "store")
    done, failed, running = (ArtifactId("purify", "por", letter * 16) for letter in "abc")
    (tmp_path / "made").mkdir()
    store.commit(done, tmp_path / "made", {})
    store.write_plan("small", {"cells": [{"stages": [done.key]}], "stages": {done.key: {}}})
    about = {"kind": "purify", "label": "por", "phase": "purify", "step": 1, "num_steps": 2}
    store.write_progress(running, about)
    store.record_failure(failed, {**about, "error": "ModelError", "message": "no", "time": "now"})
    store.write_checkpoint("d" * 16, b"1")
    code, loaded, said = started("status", "--store", tmp_path / "store", *options)
    assert (code, loaded) == (0, {"pyarrow"})
    assert "small" in said


def test_a_store_that_is_missing_is_told_without_what_computes() -> None:
    assert started("status", "--store", "missing")[:2] == (2, {"pyarrow"})


def test_the_light_list_shows_every_plugin_with_its_fields() -> None:
    said = started("list", "--json")[2]
    listed = json.loads(said[: said.rindex("}") + 1])
    for kind, registry in registries().items():
        assert list(listed[kind]) == list(registry)
        for name, about in listed[kind].items():
            assert list(about["fields"]) == list(registry.get(name).model_fields)
