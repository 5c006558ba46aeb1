"""A stage as a Tune trial, the searcher that names the next one, and the schedulers Tune needs.

A stage runs in the trial's own process, or as a DDP worker group that it starts. The process is
reused for the next stage of the same shape; imports alone cost seconds. Short stages come in
batches, one after the other in one trial, with one result per stage.

A trial whose process is starting is left alone. Tune would choose the first waiting trial as the
next one. It would give it the next process that becomes free, and kill the trial's own process,
which is still starting. If trials end faster than processes start, nodes that joined later would
stay idle.

A process that has nothing to run ends, so its CPUs are free for others. Tune would keep it for the
next trial. If there is no next trial yet, Tune waits up to ten minutes and looks at nothing else.
Two drivers on one cluster then waited for each other: each for what the other had claimed but found
no CPU for.
"""

import time
from functools import cached_property
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.execution.tune_controller import TuneController
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher

from recipe_ray.distributed.failures import WorkersLostError
from recipe_ray.distributed.monitor import StageMetrics, show_stage
from recipe_ray.distributed.train import SweepContext, use_threads
from recipe_ray.experiment.collect import run_one
from recipe_ray.experiment.spec import Launch
from recipe_ray.schedule.resources import demand_of
from recipe_ray.schedule.shared_queue import SharedQueue
from recipe_ray.stages.run import failure_note, warnings_heard
from recipe_ray.stages.stage import Stage

STAGES = "stages"  # in a trial's configuration: the keys of its stages, one step each
# in a step's result: which stage it ran, for how long, and why that failed, or an empty string
STAGE, TOOK_S, FAILURE = "stage", "took_s", "failure"
WARNINGS = "warnings"  # what its log warned of, for the person who waits for it
_ON_HEAD = {"node:__internal_head__": 0.001}


class StageTrial(tune.Trainable):
    """Runs the stages that the configuration names, one per step."""

    def setup(self, config: dict[str, Any], work: SweepContext | None = None) -> None:
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
        show_stage(stage)
        with warnings_heard() as heard:
            try:
                heard.extend(run_in_trial(stage, self._work))
            except WorkersLostError:
                raise  # not recorded: it may be started again
            except Exception as error:
                self._work.store.record_failure(stage.artifact, failure_note(error))
                failure = f"{type(error).__name__}: {error}"
        took_s = time.monotonic() - began
        found = {STAGE: key, TOOK_S: took_s, FAILURE: failure, WARNINGS: heard}
        return {"done": self._turn == len(keys), **found}


def run_in_trial(stage: Stage, work: SweepContext) -> list[str]:
    """Run one stage to its commit; raises what the stage raises, which the caller notes.

    Returns what the log of other processes warned of.
    """
    demand = demand_of(stage, work.launch)
    if demand.nested:
        from recipe_ray.distributed.train import run_nested  # Ray Train takes 3 s to import

        return run_nested(stage, work)
    use_threads(demand.cpus_per_worker)
    metrics = StageMetrics(stage, work.experiment)
    run_one(
        stage,
        work.store,
        work.locations,
        experiment=work.experiment,
        checkpoint_every_s=work.launch.checkpoint_every_s,
        on_progress=lambda _, advance: metrics(advance),
    )
    return []


def stage_trainable(work: SweepContext) -> Any:
    """Return what Tune runs: `StageTrial` with what all stages share, of the size of its stage."""
    sized: Any = tune.with_parameters(StageTrial, work=work)

    def request(cls: Any, config: dict[str, Any]) -> PlacementGroupFactory:
        return resources_of(work.stages[config[STAGES][0]], work.launch)

    # not tune.with_resources: its own class would be the name of every actor on Ray's dashboard
    sized.default_resource_request = classmethod(request)
    sized.__qualname__ = StageTrial.__qualname__
    return sized


def resources_of(stage: Stage, launch: Launch) -> PlacementGroupFactory:
    """Return what Tune reserves for the trial: only a place if workers are nested."""
    demand = demand_of(stage, launch)
    if demand.nested:
        return PlacementGroupFactory([_ON_HEAD])
    bundle = {"CPU": float(demand.cpus), "GPU": float(demand.gpus)}
    return PlacementGroupFactory([{name: count for name, count in bundle.items() if count}])


class SettledSearcher(Searcher):
    """Suggests trials without scores; neither saved nor restored: the store is the ledger."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles it for restoring, which the store does."""
        return {}

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **spec: Any) -> bool:
        """Ignore scores."""
        return True

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Do nothing: the next step is decided already, or by a callback that sees the reason."""

    def save(self, checkpoint_path: str) -> None:
        """Do nothing."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing."""


class StageSearcher(SettledSearcher):
    """Suggests a stage as soon as it may start; says "not yet" otherwise, and when it is over.

    The queue is asked through `SharedQueue`, which knows what other drivers do.
    """

    def __init__(self, neighbours: SharedQueue) -> None:
        super().__init__()
        self._neighbours = neighbours

    def suggest(self, trial_id: str) -> Any:
        """Return the keys of the next stages, None for "ask again later", or FINISHED."""
        if batch := self._neighbours.next_batch():
            return {STAGES: [stage.key for stage in batch]}
        return Searcher.FINISHED if self._neighbours.is_over else None


IDLE_S = 5.0  # twice what a new process takes to start
_ASK_EVERY_S = 0.5


class IdleProcesses:
    """The processes that Tune keeps for later trials, and since when each has had none."""

    def __init__(self) -> None:
        self._since: dict[Any, float] = {}

    def watch(self, wrapped: Any) -> None:
        """Watch the processes of the Tune that a scheduler gets."""
        tune = wrapped._tune_controller
        tune.__class__ = _Attentive
        self.give_back(tune)

    def give_back(self, tune: Any) -> None:
        """End them all as soon as one has been idle for `IDLE_S`."""
        now = time.monotonic()
        kept = [actor for actors in tune._actor_cache._cached_objects.values() for actor in actors]
        self._since = {actor: self._since.get(actor, now) for actor in kept}
        if any(now - since >= IDLE_S for since in self._since.values()):
            tune._cleanup_cached_actors(force_all=True)
            self._since = {}


class _Attentive(TuneController):
    """Tune's loop, which releases idle processes even while it waits for a trial."""

    def _update_trial_queue(self, blocking: bool = False, timeout: int = 600) -> bool:
        tune: Any = self
        give_up_at = time.monotonic() + timeout
        while not super()._update_trial_queue(blocking=False):
            if not blocking or tune.is_finished() or time.monotonic() > give_up_at:
                return False
            tune._scheduler_alg.idle.give_back(tune)
            if not tune._actor_manager.next(timeout=_ASK_EVERY_S):
                time.sleep(_ASK_EVERY_S)  # it does not wait if there is nothing to wait for
            tune._cleanup_stopping_actors()
            tune._callbacks.on_step_end(iteration=tune._iteration, trials=tune.get_trials())
        return True


class InOrder(FIFOScheduler):
    """Runs trials to their end, in the order in which they came."""

    @cached_property
    def idle(self) -> IdleProcesses:
        """What Tune keeps and may not need."""
        return IdleProcesses()

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none."""
        self.idle.watch(tune_controller)


class Halving(ASHAScheduler):
    """Asynchronous successive halving (Li et al. 2020): at each rung the best part continues."""

    @cached_property
    def idle(self) -> IdleProcesses:
        """What Tune keeps and may not need."""
        return IdleProcesses()

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none."""
        self.idle.watch(tune_controller)
