"""What lies in the folder one stands in is never imported: a model folder is foreign.

Files named like modules lie there and leave a mark if they are run.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_samples import experiment
from samples import corpus_file, tiny_folder
from tiny_search import search_fields

CANARIES = ("random", "tokenizers", "torch", "numpy", "ray", "sitecustomize", "json", "typing")
RECIPE = Path(sys.executable).with_name("recipe-ray")
SMALL = ["--set", "fit.steps=2", "--set", "fit.batch_size=6", "--set", "fit.max_length=16"]


def canary(mark: Path) -> str:
    return f"open({str(mark)!r}, 'a').write(__name__ + '\\n')\n"


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    """Return where canaries leave their marks; the folder to stand in is `stand` beside it."""
    mark, stand = tmp_path / "marks.txt", tmp_path / "stand"
    stand.mkdir()
    for name in CANARIES:
        (stand / f"{name}.py").write_text(canary(mark))
    (stand / "recipe_ray").mkdir()
    (stand / "recipe_ray" / "__init__.py").write_text(canary(mark))
    return mark


def ran(
    marks: Path, *words: object, code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as people do, standing among the canaries; none of them may have run."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1", **variables}
    for name in ("RAY_ADDRESS", "PYTHONSAFEPATH", "RECIPE_RAY_DATA"):
        environment.pop(name, None)
    if "PYTHONPATH" not in variables:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        list(map(str, words)),
        cwd=marks.with_name("stand"),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr[-3000:]
    assert not marks.exists(), marks.read_text()
    return done


def test_the_command_itself_imports_nothing_of_it(marks: Path) -> None:
    ran(marks, RECIPE, "list", "attacks")


def test_python_m_imports_nothing_of_it(marks: Path) -> None:
    # the package itself is found there first, by Python's own rule, before any code of ours
    (marks.with_name("stand") / "recipe_ray" / "__init__.py").unlink()
    (marks.with_name("stand") / "recipe_ray").rmdir()
    ran(marks, sys.executable, "-m", "recipe_ray", "list", "attacks")


def test_what_the_commands_start_has_it_on_no_path(marks: Path) -> None:
    here = marks.with_name("stand")
    elsewhere = str(here.with_name("elsewhere"))
    code = (
        "from recipe_ray.base.import_path import leave_out_working_folder\n"
        "import os, subprocess, sys\n"
        f"os.environ['PYTHONPATH'] = {f':.:{elsewhere}:'!r}\n"  # an empty part means this folder
        "leave_out_working_folder()\n"
        "subprocess.run([sys.executable, '-c', 'import sys; print(sys.path)'], check=True)\n"
    )
    shown = ran(marks, sys.executable, "-P", "-c", code).stdout
    assert repr(elsewhere) in shown
    assert repr(str(here)) not in shown
    assert "''" not in shown


def test_purify_with_one_worker(marks: Path) -> None:
    ran(marks, RECIPE, "purify", *_purify_words(marks), *SMALL)


def test_ray_and_its_workers_import_nothing_of_it(marks: Path) -> None:
    # what a command does when it needs Ray
    code = (
        "from recipe_ray.base.import_path import leave_out_working_folder\n"
        "leave_out_working_folder()\n"
        "import ray\n"
        "from recipe_ray.distributed.cluster import connected\n"
        "from recipe_ray.experiment.spec import Launch\n"
        "def work():\n"
        "    import sys, random, tokenizers, torch\n"
        "    import recipe_ray.distributed.train\n"
        "    return sys.path\n"
        "with connected(None, Launch()):\n"
        "    print(ray.get(ray.remote(work).remote()))\n"
    )
    shown = ran(marks, sys.executable, "-P", "-c", code).stdout
    assert "site-packages" in shown
    assert repr(str(marks.with_name("stand"))) not in shown


@pytest.mark.cluster  # the test above has the same processes, and trains nothing
@pytest.mark.timeout(600)
def test_purify_with_two_workers(marks: Path) -> None:
    ran(marks, RECIPE, "purify", *_purify_words(marks), *SMALL, "--workers", "2")


@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_sweep(marks: Path) -> None:
    ran(marks, RECIPE, "sweep", experiment(marks.parent), "--store", marks.parent / "store")


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_search(marks: Path) -> None:
    file = marks.parent / "search.yaml"
    fields: dict[str, Any] = search_fields(marks.parent, trials=2, epochs=2)
    file.write_text(yaml.safe_dump(fields))
    # it runs to its end; so small a model learns nothing, which a search does not call a result
    words = (RECIPE, "search", file, "--store", marks.parent / "store")
    assert "every candidate is at chance" in ran(marks, *words, code=2).stderr


def _purify_words(marks: Path) -> list[object]:
    # the tiny model knows no words, and says so
    words = [tiny_folder(), "--aux", corpus_file(marks.parent), "--out", marks.parent / "out"]
    return [*words, "--accept-harm"]
