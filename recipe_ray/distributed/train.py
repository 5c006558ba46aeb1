"""One stage on several DDP workers: a Ray Train worker group nested in the stage's trial.

Every worker runs the whole stage; rank 0 writes. Resuming is ours (the store's checkpoint slot), so
Train's own checkpoints stay unused.
"""

import tempfile
from functools import partial
from typing import Any

from ray.exceptions import RayTaskError
from ray.train import DataConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

from recipe_ray.base.errors import NonFiniteLossError, UserError
from recipe_ray.distributed.demand import Demand, demand_of
from recipe_ray.distributed.feed import RayFeed, Reading, readings_of, samples_of
from recipe_ray.distributed.metrics import StageMetrics
from recipe_ray.distributed.work import Work, use_threads
from recipe_ray.learn.runtime import ProcessGroupRuntime
from recipe_ray.stages.attempt import attempt
from recipe_ray.stages.stage import Stage

# without a limit, a group that finds no place is tried for ever, a minute each time
_PLACEMENTS = 5


class WorkersLostError(RuntimeError):
    """A worker group died, or found no place, more often than allowed."""


def run_nested(stage: Stage, work: Work) -> None:
    """Run one stage to its commit on a worker group; raises what the workers raised."""
    demand = demand_of(stage, work.launch)
    encode = stage.model.sample_encoder()
    readings = readings_of(stage.corpora(), work.locations, work.store, encode)
    stream = work.launch.stream
    try:
        datasets = {r.name: samples_of(r, stream=stream) for r in readings}
    except RayTaskError as error:
        raise original(error) from error
    with tempfile.TemporaryDirectory(prefix="recipe-ray-train-") as folder:
        worker: Any = partial(_work, stage, work, readings)
        trainer = TorchTrainer(
            worker,
            scaling_config=_scaling(demand),
            run_config=_run_config(stage, work, folder),
            datasets=datasets,
            # in memory every worker sees all samples: their batches are those of one process
            dataset_config=DataConfig(datasets_to_split="all" if stream else []),
        )
        try:
            result: Any = trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from error
        if result.return_value is not None:
            raise NonFiniteLossError(result.return_value)


def _work(stage: Stage, work: Work, readings: tuple[Reading, ...]) -> str | None:
    # in every worker; returns why it stopped where all workers know it and trying again is useless
    use_threads(demand_of(stage, work.launch).cpus_per_worker)
    try:
        attempt(
            stage,
            work.store,
            RayFeed(readings, work.launch.stream),
            work.locations,
            ProcessGroupRuntime,
            experiment=work.experiment,
            checkpoint_every_s=work.launch.checkpoint_every_s,
            observers=(StageMetrics(stage, work.experiment),),
        )
    except NonFiniteLossError as error:
        return str(error)  # of the loss over all workers, so all of them stop here
    return None


def _scaling(demand: Demand) -> ScalingConfig:
    each: dict[str, float] = {"CPU": demand.cpus_per_worker}
    if demand.gpus_per_worker:
        each["GPU"] = demand.gpus_per_worker
    return ScalingConfig(
        num_workers=demand.workers, use_gpu="GPU" in each, resources_per_worker=each
    )


def _run_config(stage: Stage, work: Work, folder: str) -> Any:  # typed as Train V1 still
    return RunConfig(
        name=stage.key,
        storage_path=folder,
        failure_config=FailureConfig(
            max_failures=work.launch.max_failures, controller_failure_limit=_PLACEMENTS
        ),
    )


def _cause(error: TrainingFailedError) -> Exception:
    """Return the exception behind a failed group: a worker's own, and rather ours than torch's.

    When one worker fails, the others fail with broken connections.
    """
    failures: dict[int, Any] = getattr(error, "worker_failures", {})
    causes: list[Exception] = [
        original(getattr(failures[rank], "_base_exc", failures[rank])) for rank in sorted(failures)
    ]
    for cause in causes:
        if isinstance(cause, UserError | NonFiniteLossError):
            return cause
    own = [cause for cause in causes if not _is_collateral(cause)]
    if own and type(own[0]).__module__.partition(".")[0] != "ray":
        return own[0]
    said = str((own or causes or [error])[0]).strip().splitlines()
    return WorkersLostError(said[0] if said else "the workers died")


def original(error: Exception) -> Exception:
    """Return what was raised in a task or actor, by way of any number of others."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


def _is_collateral(cause: BaseException) -> bool:
    return any(word in str(cause) for word in ("gloo", "NCCL", "Connection closed by peer"))
