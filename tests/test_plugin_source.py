"""A plugin's code is part of its identity: edited code is other code, unless a version says so."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from samples import corpus_file, task_fields, tiny_folder

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.base import plugin_source
from recipe_ray.base.errors import SpecError
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.base.spec import Component
from recipe_ray.defenses.defense import DEFENSES
from recipe_ray.stages.purify import PurifyStage

HALVE = """
from recipe_ray.defenses.defense import DEFENSES, Defense
{imports}

@DEFENSES.register("halve")
class Halve(Defense):
    \"\"\"Halves a weight group.\"\"\"
    {body}

    def purify(self, ptm, auxiliary, bench):
        for weight in ptm.weight_group("ffn_in"):
            weight.data.mul_({factor})
        return ()
"""
Folder = dict[str, str | bytes]


def halve(factor: object = 0.5, imports: str = "", body: str = "") -> str:
    return HALVE.format(imports=imports, body=body, factor=factor)


def write(folder: Path, files: Folder) -> Path:
    """Write files by their names; return the folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


@pytest.fixture(autouse=True)
def _own_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = set(sys.modules)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for registry in (DEFENSES, ATTACKS):  # what a test registers is forgotten
        monkeypatch.setattr(registry, "_classes", {name: registry.get(name) for name in registry})
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def imported(folder: Path, module: str = "plug", cls: str = "Halve") -> type[Component]:
    """Return a class as a new process would import it from a folder."""
    tops = {path.name.partition(".")[0] for path in folder.iterdir()}
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        found: type[Component] = getattr(importlib.import_module(module), cls)
        return found
    finally:
        sys.path.remove(str(folder))


def moved(folder: Path, before: Folder, after: Folder, module: str = "plug") -> bool:
    """Tell whether the identity changes if files do."""
    first = imported(write(folder, before), module)().identity()
    return imported(write(folder, after), module)().identity() != first


HELPED = halve("factor()", "from helper import factor")
PACKAGE: Folder = {
    "plug/__init__.py": "",
    "plug/deep/__init__.py": "",
    "plug/deep/parts.py": "FACTOR = 0.5\n",
    "plug/main.py": halve("FACTOR", "from plug.deep.parts import FACTOR"),
}


@pytest.mark.parametrize(
    ("before", "after", "module"),
    [
        ({"plug.py": halve(0.5)}, {"plug.py": halve(0.6)}, "plug"),
        (PACKAGE, {"plug/deep/parts.py": "FACTOR = 0.6\n"}, "plug.main"),
        (PACKAGE, {"plug/new.py": ""}, "plug.main"),
        (
            {"plug.py": HELPED, "helper.py": "def factor(): return 0.5\n"},
            {"helper.py": "def factor(): return 0.6\n"},
            "plug",
        ),
        (  # imported late, and by a helper's helper
            {
                "plug.py": halve("f()", "def f():\n    import helper\n    return helper.f()"),
                "helper.py": "from far import f\n",
                "far/__init__.py": "def f(): return 0.5\n",
            },
            {"far/__init__.py": "def f(): return 0.6\n"},
            "plug",
        ),
        (  # imported by a call
            {
                "plug.py": halve(imports="import importlib\nM = importlib.import_module('helper')"),
                "helper.py": "M = __import__('far')\n",
                "far.py": "x = 1\n",
            },
            {"far.py": "x = 2\n"},
            "plug",
        ),
        (  # another component in the same file
            {"plug.py": halve() + "\nclass Other(Halve):\n    x: int = 1\n"},
            {"plug.py": halve() + "\nclass Other(Halve):\n    x: int = 2\n"},
            "plug",
        ),
        (  # a mixin from a helper
            {
                "plug.py": halve(imports="from mixed import M").replace("(Def", "(M, Def"),
                "mixed.py": "class M:\n    def shared(self): return 1\n",
            },
            {"mixed.py": "class M:\n    def shared(self): return 2\n"},
            "plug",
        ),
        (  # packages in a folder without __init__.py
            {
                "plug/x/__init__.py": "",
                "plug/x/main.py": halve("f()", "from plug.y.parts import f"),
                "plug/y/parts.py": "f = int\n",
            },
            {"plug/y/parts.py": "f = float\n"},
            "plug.x.main",
        ),
        (  # a folder without __init__.py
            {"plug/main.py": halve("f()", "from .other import f"), "plug/other.py": "f = int\n"},
            {"plug/other.py": "f = float\n"},
            "plug.main",
        ),
    ],
)
def test_an_edit_of_what_a_plugin_consists_of_is_another_identity(
    tmp_path: Path, before: Folder, after: Folder, module: str
) -> None:
    assert moved(tmp_path, before, after, module)


@pytest.mark.parametrize(
    "body",
    [
        "def identity(self):\n        return {'name': 'halve', 'version': 1}",
        "def identity(self):\n        return {**super().identity(), 'version': 1}",
        "def identity(self):\n        return {}",
        "@classmethod\n    def meaning(cls):\n        return {'name': 'halve', 'version': 1}",
    ],
)
def test_a_plugin_that_makes_its_own_identity_keeps_its_source(tmp_path: Path, body: str) -> None:
    assert moved(
        tmp_path, {"plug.py": halve(body=body)}, {"plug.py": halve(0.6, body=body)}, "plug"
    )
    declared = f"version = 3\n    {body}"
    found = imported(write(tmp_path, {"plug.py": halve(body=declared)}))().identity()
    assert "+" not in str(found.get("version"))


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("recipe_ray.tasks.task", "TextTask"),
        ("recipe_ray.data.corpus", "TextCorpus"),
        ("recipe_ray.attacks.attack", "Attack"),
        ("recipe_ray.defenses.defense", "Defense"),
        ("recipe_ray.models.family", "ModelRef"),
        ("recipe_ray.stages.stage", "Stage"),
    ],
)
def test_every_kind_of_plugin_is_known_by_its_source(tmp_path: Path, kind: str, base: str) -> None:
    text = f"from {kind} import {base}\nclass Halve({base}):\n    name = 'mine'\n"
    first = imported(write(tmp_path, {"plug.py": text})).meaning()
    second = imported(write(tmp_path, {"plug.py": text + "#"})).meaning()
    assert first["version"] != second["version"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"plug.py": halve()}, {"stranger.py": "x = 1\n", "notes.txt": "x"}),
        ({"plug.py": halve()}, {"plug.py": halve().replace("\n", "\r\n")}),
        ({"plug.py": halve()}, {"plug.py": b"\n".join(halve().encode().splitlines()) + b"\n"}),
    ],
)
def test_what_a_plugin_does_not_consist_of_is_no_part_of_its_identity(
    tmp_path: Path, before: Folder, after: Folder
) -> None:
    assert not moved(tmp_path, before, after)


def test_the_same_source_at_another_place_is_the_same_plugin(tmp_path: Path) -> None:
    here = write(tmp_path / "here", PACKAGE)
    there = tmp_path / "there" / "site-packages"
    shutil.copytree(here, there)
    write(there, {"plug/__pycache__/main.cpython-311.py": "x", "plug/.hidden/a.py": "x"})
    identities = [imported(folder, "plug.main")().identity() for folder in (here, there)]
    assert identities[0] == identities[1]


def test_a_declared_version_stands_for_the_source(tmp_path: Path) -> None:
    declared = halve(body="version = 3")
    assert imported(write(tmp_path, {"plug.py": declared}))().identity()["version"] == 3
    assert not moved(tmp_path, {}, {"plug.py": declared + "# a comment\n"})
    assert moved(tmp_path, {}, {"plug.py": halve(body="version = 4")})


def test_a_base_class_declares_for_the_same_package_only(tmp_path: Path) -> None:
    own = halve(body="version = 3") + "\nclass Child(Halve):\n    pass\n"
    folder = write(
        tmp_path, {"plug.py": own, "other.py": "import plug\nclass Child(plug.Halve): 1"}
    )
    assert imported(folder, "plug", "Child")().identity()["version"] == 3
    theirs = imported(folder, "other", "Child")().identity()["version"]
    assert str(theirs).startswith("3+")


def test_a_version_that_is_inherited_from_us_is_not_declared(tmp_path: Path) -> None:
    text = "from recipe_ray.attacks.neuba import NeuBA\nclass Mine(NeuBA):\n    name = 'mine'\n"
    first = imported(write(tmp_path, {"plug.py": text}), cls="Mine").meaning()
    second = imported(write(tmp_path, {"plug.py": text + "#"}), cls="Mine").meaning()
    assert first["version"].startswith("2+")
    assert first != second


@pytest.mark.parametrize("where", ["a module that is nowhere", "zip", "compiled"])
def test_without_source_a_version_must_be_declared(tmp_path: Path, where: str) -> None:
    files: Folder = {"plug.py": halve()}
    if where == "zip":
        inside = write(tmp_path / "inside", files)
        packed = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", inside))
        sys.path.insert(0, str(packed))
        importlib.invalidate_caches()
        cls: Any = importlib.import_module("plug").Halve
        sys.path.remove(str(packed))
    elif where == "compiled":
        import py_compile

        write(tmp_path, files)
        py_compile.compile(str(tmp_path / "plug.py"), cfile=str(tmp_path / "plug.pyc"))
        (tmp_path / "plug.py").unlink()
        cls = imported(tmp_path)
    else:
        namespace: dict[str, Any] = {"__name__": "typed_in"}
        exec(halve(), namespace)
        cls = namespace["Halve"]
    with pytest.raises(SpecError, match=r"halve: no source file .*Declare `version = 1` in class"):
        cls().identity()
    cls.version = 1  # too late: what runs is what was imported
    with pytest.raises(SpecError):
        cls().identity()


def test_a_source_without_bounds_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin_source, "MAX_FILES", 3)
    many: Folder = {f"plug/m{number}.py": "" for number in range(5)}
    folder = write(tmp_path, {**PACKAGE, **many})
    with pytest.raises(SpecError, match="more than 3 files"):
        imported(folder, "plug.main")().identity()


def test_the_source_is_part_of_every_key_that_a_plugin_is_in(tmp_path: Path) -> None:
    def key() -> str:
        common = {"corpus": "bookcorpus", "seed": 0, "content": {"source": "fixed"}}
        defense = imported(tmp_path)()
        return PurifyStage(**common, model="minilm", defense=defense).key

    write(tmp_path, {"plug.py": halve()})
    before = key()
    assert key() == before
    write(tmp_path, {"plug.py": halve(0.25)})
    assert key() != before


def test_a_class_that_is_sent_by_value_keeps_its_source(tmp_path: Path) -> None:
    script = f"""{halve()}
import sys
from ray import cloudpickle
stage = (Halve, Halve().identity())
sys.stdout.buffer.write(cloudpickle.dumps(stage))
"""
    file = write(tmp_path, {"study.py": script}) / "study.py"
    sent = subprocess.run([sys.executable, str(file)], capture_output=True, check=True).stdout
    from ray import cloudpickle

    cls, identity = cloudpickle.loads(sent)
    assert "+" in identity["version"]
    assert cls().identity() == identity
    assert fingerprint(identity) == fingerprint(cls().identity())


def test_plan_does_again_what_an_edited_plugin_made(tmp_path: Path) -> None:
    inner = write(
        tmp_path / "plugins",
        {
            "plug.py": halve(),
            "plug-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: plug\nVersion: 1\n",
            "plug-1.dist-info/entry_points.txt": "[recipe_ray.plugins]\nplug = plug\n",
        },
    )
    fit = {"steps": 1, "batch_size": 4, "max_length": 16}
    grid = {
        "models": [{"name": "bert", "source": str(tiny_folder())}],
        "defenses": ["halve"],
        "auxiliaries": [{"name": "file", "path": str(corpus_file(tmp_path))}],
        "tasks": [task_fields(tmp_path)],
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump({"name": "small", "grid": grid, "finetuning": fit}))

    def run(*commands: list[str]) -> str:
        # one process for several commands: to start one takes most of the time
        script = (
            "import sys\nfrom recipe_ray.cli.app import app\n"
            f"for words in {commands!r}:\n"
            f"    app([*words, '--store', {str(tmp_path / 'store')!r}], standalone_mode=False)\n"
        )
        around = {**os.environ, "PYTHONPATH": str(inner), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", script]
        outcome = subprocess.run(
            command, env=around, capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout

    plan, debug = (
        ["plan", str(file)],
        ["debug", str(file), "--cell", "tiny-bert.halve.file.s0", "-q"],
    )
    assert "1 cells, 1 done" in run(debug, plan)
    write(inner, {"plug.py": halve(0.25)})
    assert "1 cells, 0 done" in run(plan)


def test_a_worker_with_another_source_does_not_run_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_ray.data.sources import Locations
    from recipe_ray.experiment.collect import run_inline
    from recipe_ray.store.store import Store

    write(tmp_path, {"plug.py": halve()})
    defense = imported(tmp_path)
    corpus = {"name": "file", "path": str(corpus_file(tmp_path))}
    model = {"name": "bert", "source": str(tiny_folder())}
    stage = PurifyStage(model=model, defense=defense(), corpus=corpus, seed=0)
    assert stage.key  # as planned
    monkeypatch.setattr(defense, "_source", plugin_source.Source("another"))
    store = Store.open(tmp_path / "store")
    with pytest.raises(SpecError, match="not what was planned: the code of a plugin"):
        run_inline([stage], store, Locations(None, tmp_path))
    assert not store.has(stage.artifact)
