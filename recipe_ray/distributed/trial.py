"""A stage as a Tune trial: in the trial's own process, or as a DDP worker group it starts.

The process is reused for the next stage of the same shape; imports alone cost seconds. Short stages
come in batches, one after the other in one trial, with a result each.
"""

import time
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory

from recipe_ray.distributed.losses import WorkersLostError
from recipe_ray.distributed.metrics import StageMetrics
from recipe_ray.distributed.work import Work, use_threads
from recipe_ray.experiment.demand import demand_of
from recipe_ray.experiment.inline import run_inline
from recipe_ray.experiment.spec import Launch
from recipe_ray.stages.attempt import failure_note, warnings_heard
from recipe_ray.stages.stage import Stage

STAGES = "stages"  # in a trial's configuration: the keys of its stages, one step each
# in a step's result: which stage it ran, for how long, and why that failed, or an empty string
STAGE, TOOK_S, FAILURE = "stage", "took_s", "failure"
WARNINGS = "warnings"  # what its log warned of, for the person who waits for it
_ON_HEAD = {"node:__internal_head__": 0.001}


class StageTrial(tune.Trainable):
    """Runs the stages that the configuration names, one a step."""

    def setup(self, config: dict[str, Any], work: Work | None = None) -> None:
        """Keep what all stages share."""
        assert work is not None
        self._work = work
        self._turn = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Be reused for other stages."""
        self._turn = 0
        return True

    def step(self) -> dict[str, Any]:
        """Run a stage. Its own failure is a result; lost processes are an error of the trial."""
        keys = self.config[STAGES]
        key, began, failure = keys[self._turn], time.monotonic(), ""
        self._turn += 1
        stage = self._work.stages[key]
        with warnings_heard() as heard:
            try:
                heard.extend(run_in_trial(stage, self._work))
            except WorkersLostError:
                raise  # not on record: it may be started again
            except Exception as error:
                self._work.store.record_failure(stage.artifact, failure_note(error))
                failure = f"{type(error).__name__}: {error}"
        took_s = time.monotonic() - began
        found = {STAGE: key, TOOK_S: took_s, FAILURE: failure, WARNINGS: heard}
        return {"done": self._turn == len(keys), **found}


def run_in_trial(stage: Stage, work: Work) -> list[str]:
    """Run one stage to its commit; raises what the stage raises.

    Returns what the log of other processes warned of.
    """
    demand = demand_of(stage, work.launch)
    if demand.nested:
        from recipe_ray.distributed.train import run_nested  # Ray Train takes 3 s to import

        return run_nested(stage, work)
    use_threads(demand.cpus_per_worker)
    metrics = StageMetrics(stage, work.experiment)
    run_inline(
        [stage],
        work.store,
        work.locations,
        experiment=work.experiment,
        checkpoint_every_s=work.launch.checkpoint_every_s,
        on_progress=lambda _, advance: metrics(advance),
    )
    return []


def resources_of(stage: Stage, launch: Launch) -> PlacementGroupFactory:
    """Return what Tune reserves for the trial: nothing but a place where workers are nested."""
    demand = demand_of(stage, launch)
    if demand.nested:
        return PlacementGroupFactory([_ON_HEAD])
    bundle = {"CPU": float(demand.cpus), "GPU": float(demand.gpus)}
    return PlacementGroupFactory([{name: count for name, count in bundle.items() if count}])
