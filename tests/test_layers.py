"""Who may import whom: the picture of docs/design.md, checked on the source itself."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import recipe_ray

ROOT = Path(recipe_ray.__file__).parent
MAX_LINES = 400
MIN_LINES = 60
PLUGINS = ("attacks", "defenses", "tasks")
BELOW_STAGES = {"base", "learn", "data", "models"}
BELOW_EXPERIMENT = {*BELOW_STAGES, *PLUGINS, "scan", "store", "stages"}
# package -> the packages it may import beside itself
ALLOWED: dict[str, set[str]] = {
    "base": set(),
    "learn": {"base"},
    "store": {"base"},
    "data": {"base", "learn"},
    "models": {"base", "learn", "data"},
    **dict.fromkeys(PLUGINS, BELOW_STAGES),
    "scan": BELOW_STAGES,
    "stages": {*BELOW_STAGES, *PLUGINS, "scan", "store"},
    "experiment": BELOW_EXPERIMENT,
    "schedule": {*BELOW_EXPERIMENT, "experiment"},
    "distributed": {*BELOW_EXPERIMENT, "experiment", "schedule"},
    "report": {*BELOW_EXPERIMENT, "experiment"},
    "cli": {*BELOW_EXPERIMENT, "experiment", "schedule", "distributed", "report"},
    "__main__": {"cli"},
    "__init__": set(),
}
# modules of a plugin package that plugins share
BASES = {"attack", "defense", "task", "text_task", "image_task", "own_data", "corpus"}
SHARED = {"__init__", *BASES, "relabelling", "rule"}
PLUGIN_FOLDERS = ("attacks", "defenses", "tasks")


@cache
def sources() -> dict[str, Path]:
    """Return every module of the package by its dotted name without `recipe_ray.`."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
        found[".".join(name)] = path
    return found


def imports(path: Path) -> set[str]:
    """Return the dotted names that a file imports, at any depth of it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its layer"
            found |= {_meant(str(node.module), alias.name) for alias in node.names}
    return found


def _meant(module: str, name: str) -> str:
    # `from package import module` imports the module
    whole = f"{module}.{name}"
    return whole if whole.removeprefix("recipe_ray.") in sources() else module


def own_imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    known = sources()
    names = {name.removeprefix("recipe_ray.") for name in imports(path) if "recipe_ray." in name}
    return {name for name in names if name in known}


def upward(package: str, path: Path) -> list[str]:
    """Return the imports of a file that its package may not have."""
    tops = {name.split(".")[0]: name for name in own_imports(path)}
    return [name for top, name in tops.items() if top != package and top not in ALLOWED[package]]


def reachable(start: str) -> set[str]:
    """Return every module of the package that importing `start` brings in."""
    known, seen, waiting = sources(), set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += own_imports(known[name])
    return seen


@pytest.mark.parametrize("package", sorted({name.split(".")[0] for name in sources()}))
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    assert package in ALLOWED, f"{package} has no place in the picture: add it to ALLOWED"
    wrong = {
        name: found
        for name, path in sources().items()
        if name.split(".")[0] == package and (found := upward(package, path))
    }
    assert not wrong


def test_the_check_sees_an_upward_import(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from recipe_ray.store import store\n")
    assert upward("models", file) != []
    assert upward("experiment", file) == []
    file.write_text("import recipe_ray.cli.app\nfrom recipe_ray import attacks\n")
    assert len(upward("stages", file)) == 1


def test_no_two_modules_import_each_other_even_indirectly() -> None:
    graph = {name: own_imports(path) - {name} for name, path in sources().items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(graph)


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS)
def test_plugins_of_a_package_know_nothing_of_each_other(folder: str) -> None:
    package = folder.replace("/", ".")
    modules = {n: p for n, p in sources().items() if n.startswith(f"{package}.")}
    plugins = {name for name in modules if name.rpartition(".")[2] not in SHARED}
    assert plugins
    pairs = {(name, other) for name in plugins for other in own_imports(modules[name]) & plugins}
    assert {pair for pair in pairs if pair[0] != pair[1]} == set()


def test_the_defenders_code_never_reaches_attacks_or_tasks() -> None:
    for start in sources():
        if start.startswith("defenses.") or start == "stages.purify":
            seen = {name for name in reachable(start) if name.split(".")[0] in ("attacks", "tasks")}
            assert not seen, f"{start} reaches {sorted(seen)}"


def test_only_distributed_imports_ray() -> None:
    importers = {
        name
        for name, path in sources().items()
        if any(module.split(".")[0] == "ray" for module in imports(path))
    }
    assert importers
    assert {name for name in importers if name.split(".")[0] != "distributed"} == set()


def test_the_command_line_and_inline_runs_load_without_ray() -> None:
    code = "import sys, recipe_ray.cli, recipe_ray.experiment.collect; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_no_file_is_longer_than_a_reader_bears() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in sources().items()}
    assert {name: count for name, count in lengths.items() if count > MAX_LINES} == {}


# files under MIN_LINES lines that are no plugin, and why each stands alone
SHORT = {
    "__main__": "`python -m recipe_ray`, no more",
    "cli": "the entry point: what has to happen before anything else is imported",
    "base.import_path": "imported before all else, so that it imports nothing",
    "base.fingerprint": "identity in one place",
    "stages.backdoor": "a stage kind is one file",
}


def test_a_short_file_is_a_plugin_or_has_a_reason() -> None:
    short = {
        name
        for name, path in sources().items()
        if len(path.read_text().splitlines()) < MIN_LINES
        and path.name != "__init__.py"
        and not path.parent.as_posix().endswith(PLUGIN_FOLDERS)
        and name not in SHORT
    }
    assert short == set()
    gone = [name for name in SHORT if name not in sources()]
    assert gone == []


def test_no_test_module_imports_another_one() -> None:
    tests = Path(__file__).parent
    importing = {
        file.name: line
        for file in sorted(tests.glob("*.py"))
        for line in file.read_text().splitlines()
        if line.startswith(("from test_", "import test_"))
    }
    assert importing == {}
