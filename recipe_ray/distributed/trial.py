"""One stage as a Tune trial: in the trial's own process, or as a DDP worker group it starts.

The process is reused for the next stage of the same shape; imports alone cost seconds.
"""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from ray import tune
from ray.tune import PlacementGroupFactory

from recipe_ray.data.sources import Locations
from recipe_ray.distributed.demand import demand_of
from recipe_ray.experiment.inline import run_inline
from recipe_ray.experiment.spec import Launch
from recipe_ray.stages.stage import Stage
from recipe_ray.stages.store import Store

FAILURE = "failure"  # in a trial's result: why the stage failed, or an empty string
_ON_HEAD = {"node:__internal_head__": 0.001}
logger = logging.getLogger("recipe_ray")


@dataclass(frozen=True)
class Work:
    """What every trial of a sweep shares."""

    stages: dict[str, Stage]
    store: Store
    locations: Locations
    launch: Launch


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
            run_in_trial(stage, self._work)
        except Exception as error:  # on record in the store, with its traceback
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
    every_s = work.launch.checkpoint_every_s
    run_inline([stage], work.store, work.locations, checkpoint_every_s=every_s)


def use_threads(count: int) -> None:
    """Let torch use as many threads as the worker has CPUs, where the environment did not."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def resources_of(stage: Stage, launch: Launch) -> PlacementGroupFactory:
    """Return what Tune reserves for the trial: nothing but a place where workers are nested."""
    demand = demand_of(stage, launch)
    if demand.nested:
        return PlacementGroupFactory([_ON_HEAD])
    bundle = {"CPU": float(demand.cpus), "GPU": float(demand.gpus)}
    return PlacementGroupFactory([{name: count for name, count in bundle.items() if count}])
