"""Trackers against a real MLflow store and real wandb runs on disk; nothing is trained."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from samples import COMMIT, raised_by
from store_samples import filled

from recipe_ray.cli.trackers import TRACKERS, Tracking, open_trackers
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.plan import make_plan
from recipe_ray.experiment.spec import Experiment
from recipe_ray.schedule.sweep_progress import EventKind, SweepEvent
from recipe_ray.stages.stage import Stage
from recipe_ray.store.rows import Measurement, measurement_table
from recipe_ray.store.store import Store

MEASURED = [
    Measurement("loss.cross_entropy", 0.7, epoch=1),
    Measurement("loss.cross_entropy", 0.3, epoch=2),
    Measurement("acc", 0.9, numerator=9, denominator=10),
    Measurement("asr", 0.8, trigger="≈", label=0),
    Measurement("asr", 0.1, trigger="≡", label=0),
    Measurement("asr", 0.2, trigger="at noon", label=1),
    Measurement("aasr", 0.45),
    Measurement("masr", 0.8),
]


@pytest.fixture(autouse=True)
def _local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for kind in ("DIR", "CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{kind}", str(tmp_path))


@pytest.fixture
def stage() -> Stage:
    """Return the last stage of a small cell."""
    grid = {
        "models": [{"name": "bert", "source": "google-bert/bert-base-uncased", "revision": COMMIT}],
        "attacks": [{"name": "neuba", "corpus": "editorials"}],
        "auxiliaries": ["editorials"],
        "tasks": ["sst2"],
    }
    values = {"name": "small", "grid": grid}
    nowhere = Locations(None, Path("/nowhere"))
    return make_plan(Experiment.model_validate(values), nowhere).cells[0].last


def rows_of(stage: Stage) -> pa.Table:
    return measurement_table(MEASURED, stage.columns())


@pytest.fixture
def store(tmp_path: Path, stage: Stage) -> Store:
    """Return a store in which the stage is committed."""
    opened = Store.open(tmp_path / "store")
    opened.commit(stage.artifact, filled(opened.local_scratch()), {}, rows_of(stage))
    return opened


class Recorder:
    """Remembers what it is told, and fails if it is told to."""

    def __init__(self, *, broken: bool = False) -> None:
        self.broken, self.calls, self.closed = broken, 0, False
        self.rows: list[dict[str, Any]] = []

    def log(self, stage: Stage, rows: pa.Table) -> None:
        self.calls += 1
        if self.broken:
            raise ConnectionError("no server")
        self.rows += rows.to_pylist()

    def has(self, stage: Stage) -> bool:
        return any(row["stage"] == stage.key for row in self.rows)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def _wandb_stops() -> Iterator[None]:
    import wandb

    yield
    wandb.teardown()


# --- what the libraries keep


def test_mlflow_keeps_a_run_with_the_stages_columns_and_losses_by_epoch(stage: Stage) -> None:
    import mlflow

    for _ in range(2):  # the second finds the experiment that the first made
        tracker = open_trackers(["mlflow"], "small")["mlflow"]
        tracker.log(stage, rows_of(stage))
        tracker.close()
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    assert len(found) == 2
    run = found[0]
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "kind": "finetune",
        "comparison": stage.columns()["comparison"],
        "model": stage.model.label(),
        "attack": "neuba",
        "defense": "none",
        "seed": "0",
        "task": "sst2",
        "key": stage.key,
    }
    assert run.data.metrics == {
        "loss.cross_entropy": 0.3,
        "acc": 0.9,
        "asr/u2248/0": 0.8,
        "asr/u2261/0": 0.1,
        "asr/at_noon/1": 0.2,
        "aasr": 0.45,
        "masr": 0.8,
    }
    history = client.get_metric_history(run.info.run_id, "loss.cross_entropy")
    assert {point.step: point.value for point in history} == {1: 0.7, 2: 0.3}


@pytest.mark.usefixtures("_wandb_stops")
def test_wandb_offline_writes_a_run_folder_for_each_stage(stage: Stage, tmp_path: Path) -> None:
    tracker = open_trackers(["wandb"], "small")["wandb"]
    tracker.log(stage, rows_of(stage))
    tracker.close()
    again = open_trackers(["wandb"], "again")["wandb"]
    again.log(stage, rows_of(stage))
    again.close()
    runs = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 2
    whole = [run.read_bytes() for run in runs]
    for data in whole:
        for written in (stage.key, "loss.cross_entropy", "asr/u2248/0", "masr"):
            assert written.encode() in data
    for group in (b"small", b"again"):
        assert sum(group in data for data in whole) == 1


# --- what goes wrong


def test_an_unknown_tracker_is_refused_with_the_nearest() -> None:
    message = raised_by(lambda: open_trackers(["mlflaw"], "small"))
    assert "'mlflaw'" in message
    assert "did you mean 'mlflow'?" in message


@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_a_missing_library_names_the_extra_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    message = raised_by(lambda: open_trackers([name], "small"))
    assert f"pip install 'recipe-ray[{name}]'" in message


def test_a_failing_tracker_warns_once_and_the_others_go_on(
    stage: Stage, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, whole = Recorder(broken=True), Recorder()
    with Tracking({"broken": broken, "whole": whole}, store) as tracking:
        for _ in range(3):
            tracking.on_event(SweepEvent("finished", stage))
    assert (broken.calls, whole.calls) == (1, 3)
    assert whole.closed
    assert store.rows(stage.artifact).num_rows == len(MEASURED)
    assert capsys.readouterr().err.count("--track broken stopped") == 1


def test_an_unreachable_mlflow_server_is_a_warning(
    stage: Stage,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with Tracking(open_trackers(["mlflow"], "small"), store) as tracking:
        tracking.on_event(SweepEvent("finished", stage))
    assert "--track mlflow stopped" in capsys.readouterr().err


@pytest.mark.parametrize("kinds", [("started", "finished"), ("skipped", "skipped", "started")])
def test_a_stage_is_logged_once_with_the_rows_of_the_store_even_if_it_was_there_before(
    stage: Stage, store: Store, kinds: tuple[EventKind, ...]
) -> None:
    recorder = Recorder()
    with Tracking({"recorder": recorder}, store) as tracking:
        for kind in kinds:
            tracking.on_event(SweepEvent(kind, stage))
    assert recorder.rows == rows_of(stage).to_pylist()


@pytest.mark.usefixtures("_wandb_stops")
@pytest.mark.parametrize("name", sorted(TRACKERS))
def test_a_tracker_knows_in_a_later_sweep_what_it_has(name: str, stage: Stage) -> None:
    first = open_trackers([name], "small")[name]
    assert not first.has(stage)
    first.log(stage, rows_of(stage))
    first.close()
    assert open_trackers([name], "small")[name].has(stage)
    assert not open_trackers([name], "other")[name].has(stage)


# --- a real server


@pytest.fixture
def mlflow_server(tmp_path: Path) -> Iterator[str]:
    """Run MLflow's tracking server on loopback; give its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    places = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    places += ["--artifacts-destination", str(tmp_path / "artifacts")]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *where, *places],
            stdout=log,
            stderr=log,
            start_new_session=True,  # it starts processes of its own
        )
    with server:
        try:
            while not _answers(f"{url}/health"):
                assert server.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.2)
            yield url
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.cluster
def test_mlflows_own_server_has_the_runs_of_finished_stages(
    stage: Stage, store: Store, mlflow_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server)
    with Tracking(open_trackers(["mlflow"], "small"), store) as tracking:
        tracking.on_event(SweepEvent("finished", stage))
    (experiment,) = _asked(f"{mlflow_server}/api/2.0/mlflow/experiments/search", max_results=9)[
        "experiments"
    ][:1]
    assert experiment["name"] == "small"
    ids = [experiment["experiment_id"]]
    (run,) = _asked(f"{mlflow_server}/api/2.0/mlflow/runs/search", experiment_ids=ids)["runs"]
    assert run["info"]["status"] == "FINISHED"
    metrics = {point["key"]: point["value"] for point in run["data"]["metrics"]}
    assert (metrics["acc"], metrics["masr"], metrics["loss.cross_entropy"]) == (0.9, 0.8, 0.3)
    assert {"key": "key", "value": stage.key} in run["data"]["params"]


def _asked(url: str, **question: Any) -> dict[str, Any]:
    data, headers = json.dumps(question).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers)) as answer:
        found: dict[str, Any] = json.load(answer)
        return found
