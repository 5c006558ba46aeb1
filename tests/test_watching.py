"""A real sweep in another process, seen through its store, its metrics and its event files."""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from event_files import board_folder, scalars
from watched_sweep import LONGER, watched_plan

from recipe_ray.experiment.plan import Plan
from recipe_ray.schedule.sweep_progress import DriverNotes
from recipe_ray.store.store import Store

# the time limit covers the sweep, which starts processes of torch one after the other
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Watched:
    """What was seen of the sweep: its plan, the live view's output, Prometheus' lines."""

    plan: Plan
    store: Store
    picture: str
    metrics: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Run the sweep in one process and `status --watch` in another, until both end."""
    folder = tmp_path_factory.mktemp("watched")
    plan = watched_plan(folder)
    store = Store.open(folder / "store")
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    env = {**os.environ, "PYTHONPATH": paths, "RAY_AUTH_MODE": "disabled", "COLUMNS": "200"}
    env |= {"OMP_NUM_THREADS": "1"}
    sweeping = subprocess.Popen([sys.executable, TESTS / "watched_sweep.py", folder], env=env)
    with sweeping:
        while not DriverNotes(store).living():
            assert sweeping.poll() is None, "the sweep ended before it began"
            time.sleep(0.2)
        status = ["status", "--store", store.uri, "--watch", "--interval", "0.5"]
        look = [sys.executable, "-m", "recipe_ray", *status]
        seen = subprocess.run(look, env=env, capture_output=True, text=True, check=True)
        assert sweeping.wait() == 0
    return Watched(plan, store, seen.stdout, (folder / "metrics.txt").read_text())


def values(watched: Watched, metric: str, **tags: str) -> list[float]:
    """Return the values of the lines of a metric that have these tags."""
    lines = re.findall(rf"^ray_recipe_{metric}\{{(.*)\}} (\S+)$", watched.metrics, re.MULTILINE)
    wanted = [f'{name}="{value}"' for name, value in tags.items()]
    return [float(value) for text, value in lines if all(tag in text for tag in wanted)]


def name_of(watched: Watched, kind: str) -> str:
    (stage,) = [s for s in watched.plan.stages.values() if s.name == kind]
    return f"{stage.artifact.label}-{stage.key}"


def test_the_live_view_follows_the_sweep_to_its_end(watched: Watched) -> None:
    assert "tiny: 0 of 1 cells" in watched.picture
    assert re.search(r"backdoor .* poison .*/600 .* samples/s", watched.picture)
    assert re.search(r"purify .* purify .*/600 .* samples/s", watched.picture)
    assert "tiny: 1 of 1 cells, 3 of 3 stages done" in watched.picture.splitlines()[-1]
    assert DriverNotes(watched.store).all() == []


@pytest.mark.parametrize("kind", ["backdoor", "purify"])  # in a trial, and in a DDP worker
def test_prometheus_has_speed_and_losses_of_a_stage(watched: Watched, kind: str) -> None:
    tags = {"experiment": "tiny", "kind": kind, "stage": name_of(watched, kind)}
    assert max(values(watched, "samples_per_second", **tags)) > 0
    all_samples = LONGER["steps"] * LONGER["batch_size"]
    trained = max(values(watched, "samples_total", **tags))
    # a DDP worker ends with its stage, and may take its last second's count along
    assert trained == all_samples if kind == "backdoor" else 0 < trained <= all_samples
    assert all(0 < share <= 1 for share in values(watched, "progress", **tags))
    board = scalars(Path(watched.store.uri) / board_folder_of(watched, kind))
    terms = {tag.removeprefix("loss/") for tag in board if tag.startswith("loss/")}
    assert terms
    for term in terms:
        assert values(watched, "loss", **tags, term=term)


def test_prometheus_has_the_sweeps_states_and_the_seconds_of_finished_stages(
    watched: Watched,
) -> None:
    for state in ("waiting", "running", "done"):
        assert max(values(watched, "stages", experiment="tiny", state=state)) > 0
    for kind in ("backdoor", "purify", "finetune"):
        assert values(watched, "stage_seconds_count", experiment="tiny", kind=kind)[-1] == 1


def test_every_stage_has_its_event_file_wherever_it_ran(watched: Watched) -> None:
    for kind in ("backdoor", "purify", "finetune"):
        shown = scalars(Path(watched.store.uri) / board_folder_of(watched, kind))
        assert shown["samples_per_s"]
    assert "result/masr" in shown


def board_folder_of(watched: Watched, kind: str) -> str:
    (stage,) = [s for s in watched.plan.stages.values() if s.name == kind]
    return board_folder(stage, "tiny")
