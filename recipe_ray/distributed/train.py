"""One stage on several DDP workers: a Ray Train worker group nested in the stage's trial.

Every worker runs the whole stage; rank 0 writes. Resuming is ours (the store's checkpoint slot), so
Train's own checkpoints stay unused. `SweepContext` is what trials and workers of a sweep share.
"""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from ray.exceptions import RayError
from ray.train import DataConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig

from recipe_ray.base.errors import NonFiniteLossError, UserError
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.data import RayFeed, Reading, readings_of, samples_of
from recipe_ray.distributed.failures import (
    WorkersLostError,
    a_node_is_silent,
    is_loss,
    is_node_loss,
    original,
    why_lost,
)
from recipe_ray.distributed.monitor import StageMetrics, show_stage
from recipe_ray.experiment.spec import Launch
from recipe_ray.learn.runtime import ProcessGroupRuntime
from recipe_ray.schedule.resources import Demand, demand_of
from recipe_ray.stages.run import Observed, attempt, observed, warnings_heard
from recipe_ray.stages.stage import Stage
from recipe_ray.store.store import Store


@dataclass(frozen=True)
class SweepContext:
    """The stages of a sweep, the places of their artifacts and data, and how they are launched."""

    stages: dict[str, Stage]
    store: Store
    locations: Locations
    launch: Launch
    experiment: str = "inline"  # under which event files and metrics are


def use_threads(count: int) -> None:
    """Let torch use as many threads as the worker has CPUs, if the environment did not."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


# a minute each; after that the claim on the stage is released, and it waits for its turn again
_PLACEMENTS = 5
_PLACEMENTS_WHILE_GROWING = 30  # a machine with a GPU takes a quarter of an hour to come up


def run_nested(stage: Stage, work: SweepContext) -> list[str]:
    """Run one stage to its commit on a worker group; raises what the workers raised.

    Returns what the first worker's log warned of. Raises WorkersLostError if they died, or found
    no place. A next try continues from the stage's checkpoint; the caller decides whether there is
    one.
    """
    return on_workers(_run, stage, work)


def on_workers(
    do: Callable[[Stage, SweepContext, tuple[Reading, ...]], None],
    stage: Stage,
    work: SweepContext,
    callbacks: Sequence[Any] = (),
) -> list[str]:
    """Let every worker of a group do something for a stage; raises what the workers raised.

    Returns what the first worker's log warned of. Raises WorkersLostError if they died, or found
    no place.
    """
    demand = demand_of(stage, work.launch)
    encode = stage.model.sample_encoder()
    readings = readings_of(stage.corpora(), work.locations, work.store, encode)
    stream = work.launch.stream
    try:
        datasets = {r.name: samples_of(r, stream=stream) for r in readings}
    except RayError as error:
        raise _told(original(error)) from error
    with tempfile.TemporaryDirectory(prefix="recipe-ray-train-") as folder:
        worker: Any = partial(_work, do, stage, work, readings)
        trainer = TorchTrainer(
            worker,
            scaling_config=_scaling(demand),
            run_config=_run_config(stage, work, folder, callbacks),
            datasets=datasets,
            # in memory every worker sees all samples: their batches are those of one process
            dataset_config=DataConfig(datasets_to_split="all" if stream else []),
        )
        try:
            result: Any = trainer.fit()
        except TrainingFailedError as error:
            raise _cause(error) from error
    failure, warnings = result.return_value
    if failure is not None:
        raise NonFiniteLossError(failure)
    return list(warnings)


def observed_worker(stage: Stage, work: SweepContext) -> AbstractContextManager[Observed]:
    """Return the runtime of this worker, and the event file of its work."""
    return observed(
        stage,
        work.store,
        ProcessGroupRuntime,
        experiment=work.experiment,
        checkpoint_every_s=work.launch.checkpoint_every_s,
        observers=(StageMetrics(stage, work.experiment),),
    )


def _work(
    do: Callable[[Stage, SweepContext, tuple[Reading, ...]], None],
    stage: Stage,
    work: SweepContext,
    readings: tuple[Reading, ...],
) -> tuple[str | None, list[str]]:
    # in every worker; returns why it stopped, if all workers know it and another try is useless,
    # and what its log warned of
    use_threads(demand_of(stage, work.launch).cpus_per_worker)
    show_stage(stage)
    with warnings_heard() as heard:
        try:
            do(stage, work, readings)
        except NonFiniteLossError as error:
            return str(error), heard  # it is of the loss over all workers, so all of them stop here
    return None, heard


def _run(stage: Stage, work: SweepContext, readings: tuple[Reading, ...]) -> None:
    feed = RayFeed(readings, work.launch.stream)
    with observed_worker(stage, work) as seen:
        attempt(stage, work.store, feed, work.locations, seen)


def _scaling(demand: Demand) -> ScalingConfig:
    each: dict[str, float] = {"CPU": demand.cpus_per_worker}
    if demand.gpus_per_worker:
        each["GPU"] = demand.gpus_per_worker
    return ScalingConfig(
        num_workers=demand.workers, use_gpu="GPU" in each, resources_per_worker=each
    )


def _run_config(
    stage: Stage, work: SweepContext, folder: str, callbacks: Sequence[Any]
) -> Any:  # typed as Train V1 still
    placements = _PLACEMENTS if work.launch.grow_to is None else _PLACEMENTS_WHILE_GROWING
    return RunConfig(
        name=stage.key,
        storage_path=folder,
        callbacks=list(callbacks),
        # `LossCount` counts; without a limit Train starts preempted groups again for ever
        failure_config=FailureConfig(
            max_failures=0, max_preemption_failures=0, controller_failure_limit=placements
        ),
    )


def _cause(error: TrainingFailedError) -> BaseException:
    """Return the exception behind a failed group: a worker's own, and ours before torch's.

    When one worker fails, the others fail with broken connections.
    """
    failures: dict[int, Any] = getattr(error, "worker_failures", {})
    causes = [
        original(getattr(failures[rank], "_base_exc", failures[rank])) for rank in sorted(failures)
    ]
    for cause in causes:
        if isinstance(cause, UserError):
            return cause
    on_controller = getattr(error, "controller_failure", None)
    if isinstance(on_controller, WorkerGroupStartupTimeoutError):
        waiting = f"the cluster had no room for its {on_controller.num_workers} workers"
        return WorkersLostError(waiting, no_room=True)
    lost = [cause for cause in causes if is_loss(cause)]
    own = [cause for cause in causes if not (is_loss(cause) or _is_collateral(cause))]
    if own and not lost:
        return own[0]
    return _told(*(lost or causes or [error]))


def _told(*causes: BaseException) -> BaseException:
    cause = next((cause for cause in causes if is_node_loss(cause)), causes[0])
    if _is_collateral(cause):  # the worker that is left cannot say whose fault it is
        return WorkersLostError("a worker of the group broke off", node=a_node_is_silent())
    return WorkersLostError(why_lost(cause), node=is_node_loss(cause)) if is_loss(cause) else cause


def _is_collateral(cause: BaseException) -> bool:
    return any(word in str(cause) for word in ("gloo", "NCCL", "Connection closed by peer"))
