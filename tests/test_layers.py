"""Who may import whom: the picture of docs/design.md, checked on the source itself."""

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Literal

import pytest

import recipe_ray

ROOT = Path(recipe_ray.__file__).parent
MAX_LINES = 400
MIN_LINES = 60
PLUGINS = ("attacks", "defenses", "tasks")
BELOW_TRIGGERS = {"base", "learn", "data", "models"}
BELOW_STAGES = {*BELOW_TRIGGERS, "triggers"}
BELOW_EXPERIMENT = {*BELOW_STAGES, *PLUGINS, "detectors", "store", "stages"}
# package -> the packages it may import beside itself
ALLOWED: dict[str, set[str]] = {
    "base": set(),
    "learn": {"base"},
    "store": {"base"},
    "data": {"base", "learn"},
    "models": {"base", "learn", "data"},
    "triggers": BELOW_TRIGGERS,
    "attacks": BELOW_STAGES,
    "tasks": BELOW_STAGES,
    "defenses": {*BELOW_TRIGGERS, "detectors"},
    "detectors": BELOW_TRIGGERS,
    "stages": {*BELOW_STAGES, *PLUGINS, "detectors", "store"},
    "experiment": BELOW_EXPERIMENT,
    "schedule": {*BELOW_EXPERIMENT, "experiment"},
    "distributed": {*BELOW_EXPERIMENT, "experiment", "schedule"},
    "report": {*BELOW_EXPERIMENT, "experiment"},
    "api": {*BELOW_EXPERIMENT, "experiment", "schedule", "distributed", "report"},
    "cli": {*BELOW_EXPERIMENT, "experiment", "schedule", "distributed", "report", "api"},
    "__main__": {"cli"},
    "__init__": {"api"},
}
# modules of a plugin package that plugins share
BASES = {"attack", "defense", "task", "text_task", "image_task", "own_data", "corpus"}
SHARED = {"__init__", *BASES, "relabelling", "rounds", "rule"}
TYPES_ONLY = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
# which imports of a file: all, without those for type checkers, or those made by importing it
Kind = Literal["all", "run", "at once"]
PLUGIN_FOLDERS = ("attacks", "defenses", "tasks")


@cache
def sources(root: Path = ROOT) -> dict[str, Path]:
    """Return every module of the package in a folder by its dotted name without `recipe_ray.`."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts
        found[".".join(name)] = path
    return found


def imports(path: Path, root: Path = ROOT, kind: Kind = "all") -> set[str]:
    """Return the dotted names that a file imports, at any depth of it."""
    found = set()
    for node in _nodes(ast.parse(path.read_text()), kind):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its layer"
            found |= {_meant(str(node.module), alias.name, root) for alias in node.names}
    return found


def _nodes(tree: ast.AST, kind: Kind) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if kind == "at once" and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        if kind != "all" and isinstance(node, ast.If) and ast.unparse(node.test) in TYPES_ONLY:
            yield from _nodes(ast.Module(node.orelse, []), kind)
        else:
            yield node
            yield from _nodes(node, kind)


def _meant(module: str, name: str, root: Path) -> str:
    # `from package import module` imports the module
    whole = f"{module}.{name}"
    return whole if whole.removeprefix("recipe_ray.") in sources(root) else module


def own_imports(path: Path, root: Path = ROOT, kind: Kind = "all") -> set[str]:
    """Return the modules of the package that a file imports."""
    found = imports(path, root, kind)
    names = {name.removeprefix("recipe_ray.") for name in found if "recipe_ray." in name}
    return names & sources(root).keys()


def upward(package: str, path: Path) -> list[str]:
    """Return the imports of a file that its package may not have."""
    tops = {name.split(".")[0]: name for name in own_imports(path)}
    return [name for top, name in tops.items() if top != package and top not in ALLOWED[package]]


def chains(start: str, rooms: Collection[str], root: Path = ROOT) -> list[str]:
    """Return how `start` reaches modules of these rooms: one chain of imports for each.

    Imports for type checkers alone do not count. To import a module is to import its packages: of
    those counts what is imported at once, since nobody has asked for their functions.
    """
    known = sources(root)
    run: Kind = "run"
    found, waiting, seen = dict[str, str](), [((start,), run)], {(start, run)}
    while waiting:
        chain, kind = waiting.pop(0)
        if chain[-1].split(".")[0] in rooms:
            found.setdefault(chain[-1], " > ".join(chain))
            continue
        for name in sorted(own_imports(known[chain[-1]], root, kind)):
            packages = [name[:place] for place, sign in enumerate(name) if sign == "."]
            reached: list[tuple[str, Kind]] = [(one, "at once") for one in packages if one in known]
            for step in [*reached, (name, run)]:
                if step not in seen:
                    seen.add(step)
                    waiting.append(((*chain, step[0]), step[1]))
    return list(found.values())


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


# What a defender runs: every defense and detector, their stages, and the purification of one model
# with its scans and its card. `api/purifying.py` and `api/scans.py` are left out: they turn words
# into specs by code of other commands, so they import the registries of all components, and the
# first measures a task before and after if one is given. A registry finds plugins by
# their package's name (`base/registry.py`) and so imports none of them here; which of them run is
# what a spec names.
DEFENDER = (
    *(name for name in sorted(sources()) if name.split(".")[0] in ("defenses", "detectors")),
    "stages.purify",
    "stages.scan",
    "api.scan_report",
    "api.purification",
    "api.before_after",
    "api.rounds",
    "api.card",
)
ATTACKER = ("attacks", "tasks", "triggers")


@pytest.mark.parametrize("start", DEFENDER)
def test_the_defenders_code_reaches_no_attacks_tasks_or_triggers(start: str) -> None:
    assert chains(start, ATTACKER) == []


def test_the_defenders_code_loads_no_attacks_tasks_or_triggers() -> None:
    code = f"""
import sys, importlib
for name in {DEFENDER!r}:
    importlib.import_module("recipe_ray." + name)
loaded = [name.split(".")[1:2] for name in sys.modules if name.startswith("recipe_ray.")]
print(sorted(room for [room] in loaded if room in {ATTACKER!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def made_up(root: Path, files: dict[str, str]) -> Path:
    """Write the modules of a package by their paths; return its folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_the_check_follows_imports_through_functions_packages_and_other_rooms(
    tmp_path: Path,
) -> None:
    files = {
        "defenses/one.py": "def clean():\n    from recipe_ray.models import rows\n",
        "models/rows.py": "import recipe_ray.data.deep.tools\n",
        "data/deep/__init__.py": "if later:\n    from recipe_ray.triggers.word import cut\n"
        "def main():\n    import recipe_ray.attacks.neuba\n",
        "data/deep/tools.py": "",
        "triggers/word.py": "",
        "attacks/neuba.py": "",
    }
    root = made_up(tmp_path, files)
    way = "defenses.one > models.rows > data.deep > triggers.word"
    assert chains("defenses.one", ATTACKER, root) == [way]
    assert chains("defenses.one", ("attacks",), root) == []


# forms of an import, and whether it is one when the program runs
FORMS = {
    "if TYPE_CHECKING:\n    {}": False,
    "if typing.TYPE_CHECKING:\n    {}": False,
    "if TYPE_CHECKING:\n    pass\nelse:\n    {}": True,
    "if not TYPE_CHECKING:\n    {}": True,
    "class A:\n    def b(self):\n        with c:\n            {}": True,
}


@pytest.mark.parametrize(("form", "runs"), FORMS.items())
def test_the_check_leaves_out_what_is_imported_for_type_checkers_alone(
    form: str, runs: bool, tmp_path: Path
) -> None:
    text = form.format("from recipe_ray.attacks.por import POR")
    root = made_up(tmp_path, {"defenses/one.py": text, "attacks/por.py": ""})
    assert (chains("defenses.one", ATTACKER, root) != []) == runs


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


# what makes a file a plugin: it registers a component (`base/registry.py`)
REGISTERS = re.compile(r"^@[A-Z]+\.register\(", re.MULTILINE)
# files under MIN_LINES lines that are no plugin, and why each stands alone
SHORT = {
    "__main__": "`python -m recipe_ray` asks for this file by its name",
    "base.fingerprint": "what a key is: needed in seven rooms, most of which need no spec",
    "base.import_path": "imported before all else, so that it imports nothing",
    "base.printable": "whatever shows text from outside takes it from here, in five rooms",
    "triggers.kinds": "names every kind of trigger: it imports them, and they import `trigger`",
}


def short_files(root: Path = ROOT) -> set[str]:
    """Return the modules under MIN_LINES lines that are no plugin and no package's face."""
    return {
        name
        for name, path in sources(root).items()
        if path.name != "__init__.py"
        and len((text := path.read_text()).splitlines()) < MIN_LINES
        and not REGISTERS.search(text)
    }


def test_a_short_file_is_a_plugin_or_has_a_reason() -> None:
    assert short_files() == set(SHORT)


def test_the_check_sees_a_short_file_in_any_room(tmp_path: Path) -> None:
    root = made_up(
        tmp_path,
        {
            "attacks/__init__.py": "",
            "attacks/one.py": '@ATTACKS.register("one")\nclass One: ...\n',
            "attacks/words.py": "WORDS = ()\n",
            "data/long.py": "\n" * MIN_LINES,
            "data/short.py": "A = 1\n",
        },
    )
    assert short_files(root) == {"attacks.words", "data.short"}


TESTS = Path(__file__).parent


def borrowed(tests: Path) -> dict[str, set[str]]:
    """Return for each file of a folder of tests the test modules that it imports."""
    modules = {file.stem for file in tests.glob("test_*.py")}
    found = {}
    for file in sorted(tests.glob("*.py")):
        parts = {part for name in imports(file, tests) for part in name.split(".")}
        if parts & modules:
            found[file.name] = parts & modules
    return found


def test_no_file_of_the_tests_imports_a_test_module() -> None:
    assert borrowed(TESTS) == {}


def test_the_check_sees_an_import_from_a_test_module(tmp_path: Path) -> None:
    made_up(
        tmp_path,
        {
            "test_one.py": "def f():\n    from test_two import shared\n",
            "test_two.py": "import samples\n",
            "samples.py": "import test_one as one\n",
        },
    )
    assert borrowed(tmp_path) == {"test_one.py": {"test_two"}, "samples.py": {"test_one"}}


def repeated_fixtures(tests: Path) -> dict[str, list[str]]:
    """Return the fixtures that several test modules define alike, and the modules."""
    found: dict[str, list[str]] = {}
    for file in sorted(tests.glob("test_*.py")):
        for node in ast.parse(file.read_text()).body:
            marks = ast.unparse(ast.Tuple(getattr(node, "decorator_list", []), ast.Load()))
            if isinstance(node, ast.FunctionDef) and "pytest.fixture" in marks:
                body = node.body[1:] if ast.get_docstring(node) else node.body
                text = "\n".join(map(ast.unparse, [node.args, *body]))
                found.setdefault(f"{node.name}: {text}", []).append(file.name)
    return {name: files for name, files in found.items() if len(files) > 1}


def test_a_fixture_that_test_modules_share_stands_once() -> None:
    assert repeated_fixtures(TESTS) == {}, "move it to conftest.py"


def test_the_check_sees_a_fixture_that_was_copied(tmp_path: Path) -> None:
    fixture = "@pytest.fixture(scope={!r})\ndef place() -> int:\n    {!r}\n    return {}\n"
    files = {
        "test_one.py": fixture.format("module", "A number.", 1),
        "test_two.py": fixture.format("session", "The number.", 1),
        "test_three.py": fixture.format("module", "A number.", 3),
    }
    assert list(repeated_fixtures(made_up(tmp_path, files)).values()) == [
        ["test_one.py", "test_two.py"]
    ]
