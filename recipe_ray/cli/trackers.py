"""Experiment tracking: every finished stage as a run in MLflow or in Weights & Biases.

That includes stages that the store had before, or another driver made, unless the tracker has a run
of them already. The store stays the ledger. A tracker is only told what happened, and its errors
cannot harm a sweep. Its library is imported when it is asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import typer

from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.fingerprint import fingerprint

if TYPE_CHECKING:
    import pyarrow as pa

    from recipe_ray.schedule.sweep_progress import SweepEvent
    from recipe_ray.stages.stage import Stage
    from recipe_ray.store.store import Store

_MLFLOW_BATCH = 1000  # metrics that a server takes in one request
_WANDB_LENGTH = 128  # characters of a name or group


class Tracker(Protocol):
    """Shows finished stages where people compare runs; raises all that its library raises."""

    def log(self, stage: Stage, rows: pa.Table) -> None:
        """Add one run with the stage's columns and its rows (`measurement_schema`)."""

    def has(self, stage: Stage) -> bool:
        """Tell whether it has a run of a stage in this experiment, as far as this machine knows."""

    def close(self) -> None:
        """Release what the library holds."""


class MlflowTracker:
    """One MLflow run per stage, in the MLflow experiment with our experiment's name.

    MLFLOW_TRACKING_URI says where; else the client chooses sqlite in the working folder.
    """

    def __init__(self, experiment: str) -> None:
        # the sweep waits for it: with the client's defaults, minutes for a dead server
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        self._experiment = experiment
        self._mlflow = _library("mlflow")

    def log(self, stage: Stage, rows: pa.Table) -> None:
        """Add one run with the stage's columns and its rows."""
        client, experiment_id = self._place
        run = client.create_run(experiment_id, run_name=stage.caption).info
        entities = self._mlflow.entities
        params = [entities.Param(key, str(value)) for key, value in _params(stage).items()]
        client.log_batch(run.run_id, params=params)
        metrics = [
            entities.Metric(name, value, run.start_time, epoch or 0)
            for name, value, epoch in _points(rows)
        ]
        for start in range(0, len(metrics), _MLFLOW_BATCH):
            client.log_batch(run.run_id, metrics[start : start + _MLFLOW_BATCH])
        client.set_terminated(run.run_id)

    def has(self, stage: Stage) -> bool:
        """Tell whether the server has a finished run of a stage; asked once, for all of them."""
        return stage.key in self._before

    def close(self) -> None:
        """Do nothing: the client holds nothing."""

    @cached_property
    def _before(self) -> frozenset[str]:
        client, experiment_id = self._place
        found: set[str] = set()
        page: Any = None
        while page is None or page.token:
            page = client.search_runs(
                [experiment_id],
                "attributes.status = 'FINISHED'",
                max_results=_MLFLOW_BATCH,
                page_token=page.token if page is not None else None,
            )
            found |= {run.data.params.get("key", "") for run in page}
        return frozenset(found)

    @cached_property
    def _place(self) -> tuple[Any, str]:
        # client and experiment id, found at the first run, so no server is needed before
        client, name = self._mlflow.MlflowClient(), self._experiment
        found = client.get_experiment_by_name(name)
        return client, found.experiment_id if found is not None else client.create_experiment(name)


class WandbTracker:
    """One wandb run per stage, grouped by experiment; SpecError if it is online, not logged in."""

    def __init__(self, experiment: str) -> None:
        self._group = experiment[:_WANDB_LENGTH]
        self._wandb = _library("wandb")
        if os.environ.get("WANDB_MODE") not in ("offline", "disabled"):
            self._log_in()

    def log(self, stage: Stage, rows: pa.Table) -> None:
        """Add one run with the stage's columns and its rows."""
        with self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", "recipe-ray"),
            group=self._group,
            job_type=stage.name,
            name=stage.caption[:_WANDB_LENGTH],
            id=self._id(stage),
            resume="allow",  # of another machine's run of the stage, not a second one beside it
            config=_params(stage),
            # the display owns the terminal, and this machine's load is not the stage's
            settings=self._wandb.Settings(silent=True, console="off", x_disable_stats=True),
        ) as run:
            for name, value, epoch in _points(rows):
                if epoch is None:
                    run.summary[name] = value
                else:
                    run.log({name: value}, step=epoch)

    def has(self, stage: Stage) -> bool:
        """Tell whether the folder of wandb's runs has one of a stage."""
        folder = Path(os.environ.get("WANDB_DIR") or ".") / "wandb"
        return any(folder.glob(f"*run-*-{self._id(stage)}"))

    def close(self) -> None:
        """Stop wandb's own process."""
        self._wandb.teardown()

    def _id(self, stage: Stage) -> str:
        return fingerprint({"stage": stage.key, "experiment": self._group})

    def _log_in(self) -> None:
        # asked now: a question for a key would stop the sweep at its first finished stage
        try:
            self._wandb.login(verify=False)
        except self._wandb.Error as error:
            raise SpecError(f"--track wandb: {error}; or set WANDB_MODE=offline") from error


# what makes a tracker of an experiment's name
TRACKERS: dict[str, Callable[[str], Tracker]] = {"mlflow": MlflowTracker, "wandb": WandbTracker}


def open_trackers(names: Collection[str], experiment: str) -> dict[str, Tracker]:
    """Return trackers by name; raise SpecError for an unknown name or a missing library."""
    for name in names:
        if name not in TRACKERS:
            raise SpecError(f"--track: {unknown('tracker', name, TRACKERS)}")
    return {name: TRACKERS[name](experiment) for name in dict.fromkeys(names)}


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        install = f"pip install 'recipe-ray[{name}]'"
        raise SpecError(f"--track {name} needs {error.name}: {install}") from error


def _params(stage: Stage) -> dict[str, Any]:
    columns = {**stage.columns(), "key": stage.key, "stage": None}
    return {name: value for name, value in columns.items() if value is not None}


def _points(rows: pa.Table) -> list[tuple[str, float, int | None]]:
    # name, value, epoch; wandb wants epochs in order, and only losses have them
    points = [(_metric(row), row["value"], row["epoch"]) for row in rows.to_pylist()]
    return sorted(points, key=lambda point: point[2] or 0)


def _metric(row: dict[str, Any]) -> str:
    parts = (row["metric"], row["trigger"], row["label"])
    return "/".join(_safe(str(part)) for part in parts if part is not None)


def _safe(name: str) -> str:
    # spelled out: otherwise NeuBA's triggers would all become the same underscore; and a trigger
    # such as `..`, because MLflow makes paths of metrics
    strange = r"[^A-Za-z0-9_.-]|^\.+"
    return re.sub(strange, lambda c: "".join(map(_spelled, c[0])), name.replace(" ", "_"))


def _spelled(char: str) -> str:
    return f"u{ord(char):04x}"


class Tracking:
    """Tells trackers of finished stages; one that fails is dropped with one warning.

    It is not told again, because each attempt at a dead server delays the sweep.
    """

    def __init__(self, trackers: dict[str, Tracker], store: Store) -> None:
        self._trackers = dict(trackers)
        self._store = store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._each(lambda tracker: tracker.close())

    def on_event(self, event: SweepEvent) -> None:
        """Log the rows of a stage that has just finished, or was there and is not logged yet."""
        stage = event.stage

        def log(tracker: Tracker) -> None:
            if event.kind == "finished" or not tracker.has(stage):
                tracker.log(stage, self._store.rows(stage.artifact))

        if event.kind in ("finished", "skipped"):
            self._each(log)

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tell(tracker)
            except Exception as error:
                del self._trackers[name]
                problem = f"{type(error).__name__}: {error}"
                typer.secho(
                    f"warning: --track {name} stopped, but the sweep continues; results stay "
                    f"in the store ({problem})",
                    fg="yellow",
                    err=True,
                )
