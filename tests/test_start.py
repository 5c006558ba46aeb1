"""Commands that compute nothing start without the libraries that compute."""

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from recipe_ray.cli.app import COMMANDS
from recipe_ray.cli.options import KINDS, registries
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
    "numpy",
    "PIL",
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


def run(*words: object) -> tuple[int, set[str], str]:
    """Run a command as `recipe-ray` does; return its exit code, its modules and what it said."""
    code = [sys.executable, "-c", START, *map(str, words)]
    done = subprocess.run(code, capture_output=True, text=True, check=True)
    *_, exit_code, modules = done.stdout.splitlines()
    return int(exit_code), set(modules.split()), done.stdout + done.stderr


def started(*words: object) -> tuple[int, set[str], str]:
    """Return what `run` does, but of the modules only the heavy ones."""
    code, modules, said = run(*words)
    return code, modules & set(HEAVY), said


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--version"],
        ["sweep", "--help"],
        ["purify", "--help"],
        ["store", "-h"],
        ["store", "gc", "-h"],
    ],
    ids=" ".join,
)
def test_what_only_tells_of_the_program_loads_nothing_that_computes(words: list[str]) -> None:
    assert started(*words)[:2] == (0, set())


@pytest.mark.parametrize(
    "words", [["list"], ["list", "--json"], *(["list", kind] for kind in KINDS)], ids=" ".join
)
def test_a_list_loads_all_plugins_and_with_them_nothing_that_computes(words: list[str]) -> None:
    assert started(*words)[:2] == (0, set())


def test_a_wrong_kind_to_list_loads_no_more() -> None:
    assert started("list", "model")[:2] == (2, set())


@pytest.mark.parametrize(
    ("words", "own"),
    [(["--version"], set()), (["swep"], set()), (["plan"], {"grid"}), (["list", "x"], {"listing"})],
    ids=str,
)
def test_only_the_module_of_the_command_that_is_named_is_loaded(
    words: list[str], own: set[str]
) -> None:
    modules = run(*words)[1]
    files = {file for file, *_ in COMMANDS.values()}
    assert {file for file in files if f"recipe_ray.cli.{file}" in modules} == own


def test_the_version_is_told_without_pydantic() -> None:
    assert "pydantic" not in run("--version")[1]


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
    for command in COMMANDS:
        assert f" {command} " in said
    assert "Show what is done, running and failed in a store" in " ".join(said.split())


def filled_store(folder: Path) -> tuple[Store, ArtifactId]:
    """Return a store with a stage done, one failed, a resume point, and one that runs."""
    store = Store.open(folder / "store")
    done, failed, running = (ArtifactId("purify", "por", letter * 16) for letter in "abc")
    (folder / "made").mkdir()
    store.commit(done, folder / "made", {})
    store.write_plan("small", {"cells": [{"stages": [done.key]}], "stages": {done.key: {}}})
    about = {"kind": "purify", "label": "por", "phase": "purify", "step": 1, "num_steps": 2}
    now = datetime.now(UTC).isoformat()
    store.write_progress(running, {**about, "time": now})
    store.record_failure(failed, {**about, "error": "ModelError", "message": "no", "time": now})
    store.write_checkpoint("d" * 16, b"1")
    return store, running


@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
def test_status_reads_a_store_with_nothing_that_computes(
    tmp_path: Path, options: list[str]
) -> None:
    filled_store(tmp_path)
    code, loaded, said = started("status", "--store", tmp_path / "store", *options)
    assert (code, loaded) == (0, set())
    assert "small" in said
    assert "nothing runs on this store" not in said


def test_watching_loads_nothing_that_computes_and_ends_with_what_runs(tmp_path: Path) -> None:
    store, running = filled_store(tmp_path)
    words = ["status", "--store", str(tmp_path / "store"), "--watch", "--interval", "0.2"]
    code = [sys.executable, "-c", START, *words]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("purify" in line for line in process.stdout)
        store.clear_progress(running)
        *_, exit_code, modules = process.stdout.read().splitlines()
    assert (int(exit_code), set(modules.split()) & set(HEAVY)) == (0, set())


def test_a_store_that_is_missing_is_told_without_what_computes() -> None:
    assert started("status", "--store", "missing")[:2] == (2, set())


def test_the_light_list_shows_every_plugin_with_its_fields() -> None:
    said = started("list", "--json")[2]
    listed = json.loads(said[: said.rindex("}") + 1])
    for kind, registry in registries().items():
        assert list(listed[kind]) == list(registry)
        for name, about in listed[kind].items():
            assert list(about["fields"]) == list(registry.get(name).model_fields)
