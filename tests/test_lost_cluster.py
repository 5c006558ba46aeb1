"""A cluster that goes while a command works on it: one line says so, and nothing is blamed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cli_samples import experiment
from real_cluster import real_cluster
from samples import corpus_file, tiny_folder
from tiny_search import search_fields

from recipe_ray.store.store import Store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
RECIPE = Path(sys.executable).with_name("recipe-ray")
LONG = {"steps": 2000, "batch_size": 6, "max_length": 16, "precision": "fp32"}


def sweep_words(folder: Path) -> tuple[list[str], Path]:
    file = experiment(folder)
    fields = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump({**fields, "finetuning": LONG}))
    return ["sweep", str(file), "--store", str(folder / "store")], folder / "store"


def search_words(folder: Path) -> tuple[list[str], Path]:
    file = folder / "search.yaml"
    defense = {"name": "recipe", "fit": {**LONG, "learning_rate": 1e-3}}
    file.write_text(yaml.safe_dump(search_fields(folder, defense=defense, finetuning=LONG)))
    return ["search", str(file), "--store", str(folder / "store")], folder / "store"


def purify_words(folder: Path) -> tuple[list[str], Path]:
    changes = [f"--set=fit.{name}={LONG[name]}" for name in ("steps", "batch_size", "max_length")]
    data = ["--aux", str(corpus_file(folder)), "--workers", "2", "--accept-harm", *changes]
    out = folder / "out"
    return ["purify", str(tiny_folder()), *data, "--out", str(out)], folder / "out.partial"


def begun(command: list[str], address: str) -> subprocess.Popen[str]:
    given = ["--address", address] if command[0] != "purify" else []  # which has no such option
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    environment |= {} if given else {"RAY_ADDRESS": address}
    words = [str(RECIPE), *command, *given]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.parametrize("words", [sweep_words, search_words, purify_words])
def test_a_lost_cluster_is_said_in_a_line_and_nothing_is_blamed(
    words: Callable[[Path], tuple[list[str], Path]], tmp_path: Path
) -> None:
    command, store = words(tmp_path)
    with real_cluster(num_cpus=2) as address:
        driver = begun(command, address)
        give_up_at = time.monotonic() + 240
        while not (store.is_dir() and Store.open(store).progress()):
            assert driver.poll() is None, driver.communicate()[1]
            assert time.monotonic() < give_up_at
            time.sleep(0.2)
    lost = time.monotonic()
    said = driver.communicate(timeout=120)[1]
    assert driver.returncode == 2, said
    assert time.monotonic() - lost < 60
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert f"the Ray cluster at {address} was lost" in line
    assert "same command" in line
    assert "Traceback" not in said
    assert Store.open(store).failures() == {}
