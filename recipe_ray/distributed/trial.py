"""One stage as a Tune trial: in the trial's own process, or as a DDP worker group it starts.

The process is reused for the next stage of the same shape; imports alone cost seconds.
"""

from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory

from recipe_ray.distributed.demand import demand_of
from recipe_ray.distributed.metrics import StageMetrics
from recipe_ray.distributed.work import Work, use_threads
from recipe_ray.experiment.inline import run_inline
from recipe_ray.experiment.spec import Launch
from recipe_ray.stages.attempt import failure_on_record
from recipe_ray.stages.stage import Stage

FAILURE = "failure"  # in a trial's result: why the stage failed, or an empty string
_ON_HEAD = {"node:__internal_head__": 0.001}


class StageTrial(tune.Trainable):
    """Runs the stage that the configuration names, in one step."""

    def setup(self, config: dict[str, Any], work: Work | None = None) -> None:
        """Keep what all stages share."""
        assert work is not None
        self._work = work

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Be reused for another stage."""
        return True

    def step(self) -> dict[str, Any]:
        """Run the stage. Its own failure is a result, so that Tune retries only lost processes."""
        stage = self._work.stages[self.config["stage"]]
        try:
            with failure_on_record(stage, self._work.store):
                run_in_trial(stage, self._work)
        except Exception as error:
            return {"done": True, FAILURE: f"{type(error).__name__}: {error}"}
        return {"done": True, FAILURE: ""}


def run_in_trial(stage: Stage, work: Work) -> None:
    """Run one stage to its commit; raises what the stage raises."""
    demand = demand_of(stage, work.launch)
    if demand.nested:
        from recipe_ray.distributed.train import run_nested  # Ray Train takes 3 s to import

        run_nested(stage, work)
        return
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


def resources_of(stage: Stage, launch: Launch) -> PlacementGroupFactory:
    """Return what Tune reserves for the trial: nothing but a place where workers are nested."""
    demand = demand_of(stage, launch)
    if demand.nested:
        return PlacementGroupFactory([_ON_HEAD])
    bundle = {"CPU": float(demand.cpus), "GPU": float(demand.gpus)}
    return PlacementGroupFactory([{name: count for name, count in bundle.items() if count}])
