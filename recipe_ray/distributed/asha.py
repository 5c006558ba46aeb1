"""ASHA over the candidates of a search: one Tune run, rungs by epochs, the worst stopped.

Asynchronous successive halving (Li et al. 2020): at each rung a candidate continues if it is among
the best 1/reduction of those that came that far. It does not wait for the others. A candidate is a
Tune trial that reports the evaluation of every epoch and is stopped between two. Evaluations that
the store has are reported at once. With one worker the purification runs in the trial's own
process, which waits at each report for Tune's verdict. With more workers it runs in a Train worker
group that reports to Tune through a queue.
"""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import ray.train
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.search import Searcher

from recipe_ray.base.errors import NonFiniteLossError, UserError
from recipe_ray.data.batches import LocalFeed
from recipe_ray.distributed.cluster import ClusterCapacity
from recipe_ray.distributed.contact import head_is_silent
from recipe_ray.distributed.data import RayFeed, Reading
from recipe_ray.distributed.failures import WorkersLostError, error_of, kill_process_of, why_lost
from recipe_ray.distributed.monitor import StageMetrics
from recipe_ray.distributed.train import SweepContext, observed_worker, on_workers, use_threads
from recipe_ray.distributed.trial import FAILURE, WARNINGS, Halving, SettledSearcher, resources_of
from recipe_ray.experiment.search import WORST, Range, Search, Settings, drawn_at_random, layer_sets
from recipe_ray.experiment.search_plan import (
    SCORE,
    Candidate,
    Course,
    Ending,
    Look,
    LookStage,
    Record,
    SearchPlan,
    Undefended,
    look_at,
)
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.schedule.resources import check_fits, demand_of
from recipe_ray.stages.epoch_evals import purify_with_looks
from recipe_ray.stages.run import failure_note, observed, scratch, warnings_heard
from recipe_ray.stages.stage import Context, Stage

EPOCH, DIVERGED = "epoch", "diverged"


@dataclass(frozen=True)
class SearchContext:
    """What every candidate shares; `ended`: candidates that ended before, and are only reported."""

    plan: SearchPlan
    work: SweepContext
    undefended: Undefended
    ended: Mapping[Settings, tuple[int, Ending]]


def result_of(look: LookStage, shared: SearchContext) -> dict[str, Any]:
    """Return what Tune is told of a committed look."""
    found = look_at(shared.plan, shared.work.store, look, shared.undefended)
    return {EPOCH: found.epoch, SCORE: found.score, FAILURE: "", DIVERGED: False}


def run_on_workers(
    candidate: Candidate, looks: tuple[LookStage, ...], shared: SearchContext
) -> None:
    """Purify with looks on a worker group; all workers report every look, and rank 0's counts.

    Tune stops it from outside: the group dies with the trial that started it.
    """

    def do(stage: Stage, work: SweepContext, readings: tuple[Reading, ...]) -> None:
        feed = RayFeed(readings, work.launch.stream)
        with observed_worker(stage, work) as seen, scratch(work.store) as folder:
            runtime = seen.runtime

            def report(look: LookStage) -> None:
                result: dict[str, Any] = result_of(look, shared) if runtime.rank == 0 else {}
                ray.train.report(result)

            context = Context(work.store, feed, work.locations, runtime, folder)
            purify_with_looks(candidate.purify, looks, context, report)

    to_tune: Any = TuneReportCallback  # untyped
    on_workers(do, candidate.purify, shared.work, callbacks=[to_tune()])


def run_candidate(config: dict[str, Any], shared: SearchContext) -> None:
    """Report the looks of the candidate that the configuration holds, until told to stop.

    A purification that fails is reported as the worst score, so that the search continues.
    """
    candidate = shared.plan.candidate(Settings.of(config))
    until, ending = shared.ended.get(candidate.settings, (None, None))
    known = _known(candidate, shared)[:until]
    for look in known:
        tune.report(result_of(look, shared))
    lost = {EPOCH: len(known) + 1, SCORE: WORST}
    if ending == "diverged":
        tune.report({**lost, FAILURE: "it diverged before", DIVERGED: True})
    if ending is not None:
        return
    try:
        _purify(candidate, candidate.looks[len(known) :], shared)
    except WorkersLostError:
        raise  # Tune starts it again
    except Exception as error:
        shared.work.store.record_failure(candidate.purify.artifact, failure_note(error))
        diverged = isinstance(error, NonFiniteLossError)
        message = f"{type(error).__name__}: {error}"
        tune.report({**lost, FAILURE: message, DIVERGED: diverged})


def _known(candidate: Candidate, shared: SearchContext) -> list[LookStage]:
    known = []
    for look in candidate.looks:
        if not shared.work.store.has(look.artifact):
            break
        known.append(look)
    return known


def _purify(candidate: Candidate, looks: tuple[LookStage, ...], shared: SearchContext) -> None:
    if not looks:
        return
    demand = demand_of(candidate.purify, shared.work.launch)
    if demand.nested:
        run_on_workers(candidate, looks, shared)
        return
    use_threads(demand.cpus_per_worker)
    work = shared.work
    seen = observed(
        candidate.purify,
        work.store,
        LocalRuntime,
        experiment=work.experiment,
        checkpoint_every_s=work.launch.checkpoint_every_s,
        observers=(StageMetrics(candidate.purify, work.experiment),),
    )
    with warnings_heard() as heard, seen as mine, scratch(work.store) as folder:
        feed = LocalFeed(work.locations)
        context = Context(work.store, feed, work.locations, mine.runtime, folder)

        def report(look: LookStage) -> None:
            tune.report({**result_of(look, shared), WARNINGS: [*heard]})
            heard.clear()

        purify_with_looks(candidate.purify, looks, context, report)


# skipped: it ended in an earlier run of the search
CandidateEventKind = Literal["skipped", "started", "looked", "ended"]

logger = logging.getLogger("recipe_ray")


@dataclass(frozen=True)
class CandidateEvent:
    """One thing that happened to one candidate; `message` says why it failed."""

    kind: CandidateEventKind
    course: Course
    message: str = ""


def run_asha(
    shared: SearchContext,
    record: Record,
    on_event: Callable[[CandidateEvent], None] | None = None,
    is_lost: Callable[[], bool] = lambda: False,
) -> None:
    """Run candidates until all have ended; the record is kept up to date in the store.

    `is_lost`: whether another driver runs them now. Then all are stopped, and nothing more is
    written. Raises SpecError, before anything runs, if a candidate does not fit the cluster.
    """
    search, launch = shared.plan.search, shared.work.launch
    purify = shared.plan.template.purify
    check_fits([purify], launch, ClusterCapacity(launch.grow_to)())
    watch = CandidateWatch(shared, record, on_event, is_lost)
    with tempfile.TemporaryDirectory(prefix="recipe-ray-tune-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(run_candidate, shared=shared), resources_of(purify, launch)
            ),
            param_space=_space(search) if search.sampling == "optuna" else {},
            tune_config=tune.TuneConfig(
                metric=SCORE,
                mode="max",
                search_alg=_sampler(search, list(record.courses)),
                scheduler=Halving(
                    time_attr=EPOCH,
                    max_t=search.epochs,
                    grace_period=search.grace,
                    reduction_factor=search.reduction,
                ),
                num_samples=search.trials,
                max_concurrent_trials=_concurrency(shared),
                # a worker group outlives the thread that waits for it: its process is not reused
                reuse_actors=not demand_of(purify, launch).nested,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=folder,
                verbose=0,
                callbacks=[watch],
                stop=_UnlessLost(watch),
                failure_config=tune.FailureConfig(max_failures=launch.max_failures),
            ),
        )
        try:
            tuner.fit()
        finally:
            watch.tidy()


def require_sampler(search: Search) -> None:
    """Raise UserError, saying how to get it, if the library that samples is missing."""
    if search.sampling == "optuna" and find_spec("optuna") is None:
        install = "pip install 'recipe-ray[search]'"
        raise UserError(f"sampling: optuna needs optuna: {install}; or use sampling: random")


class ListedSearcher(SettledSearcher):
    """Suggests given settings in their order."""

    def __init__(self, listed: Sequence[Settings]) -> None:
        super().__init__()
        self._left = list(listed)

    def suggest(self, trial_id: str) -> Any:
        """Return the next settings."""
        return self._left.pop(0).given() if self._left else Searcher.FINISHED


class CandidateWatch(tune.Callback):
    """Hears of every look from Tune, and keeps the record while the candidates are ours."""

    def __init__(
        self,
        shared: SearchContext,
        record: Record,
        on_event: Callable[[CandidateEvent], None] | None,
        is_lost: Callable[[], bool],
    ) -> None:
        self._shared = shared
        self.is_lost = is_lost
        self._store = shared.work.store
        self._record = record
        self._on_event = on_event

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune would pickle it for restoring, but cannot; the store restores."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note which settings are tried, so that a search started again tries the same."""
        if self.is_lost():
            return
        course = self._course(trial)
        self._record.save()
        if course.ended is None:
            self._tell("started", course)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Note a look, once."""
        if self.is_lost():
            return
        course, epoch = self._course(trial), result[EPOCH]
        for warning in result.get(WARNINGS, ()):  # those of a worker group stay in its log
            logger.warning("%s: %s", course.candidate.settings.title(), warning)
        if result[FAILURE] or epoch in course.looks:
            return
        self._record.add(course, self._look(course, epoch), course.candidate.looks[epoch - 1])
        self._record.save()
        self._tell("looked", course)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note once how a candidate ended."""
        if self.is_lost():
            return
        course, last = self._course(trial), trial.last_result
        if course.ended is not None:
            return
        if last[FAILURE]:
            course.ended = "diverged" if last[DIVERGED] else "failed"
        else:
            course.ended = "finished" if course.epochs == self._epochs else "stopped"
        self._end(course, last[FAILURE])

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Note a candidate whose process died more often than allowed."""
        if self.is_lost() or head_is_silent():
            return  # with the whole cluster: the next search tries it again
        course = self._course(trial)
        course.ended = "failed"
        self._end(course, why_lost(error_of(trial)))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Kill running candidates that are another driver's: the next look may be far."""
        if self.is_lost():
            for trial in trials:
                kill_process_of(trial)

    def tidy(self) -> None:
        """Remove from the store what processes stopped from outside may have left."""
        if self.is_lost():
            return  # the other driver's candidates write there
        for course in self._record.courses.values():
            self._store.clear_progress(course.candidate.purify.artifact)
            if course.ended is not None:
                self._store.drop_checkpoint(course.candidate.purify.key)

    @property
    def _epochs(self) -> int:
        return self._shared.plan.search.epochs

    def _course(self, trial: Any) -> Course:
        return self._record.begin(Settings.of(trial.config))

    def _look(self, course: Course, epoch: int) -> Look:
        stage = course.candidate.looks[epoch - 1]
        return look_at(self._shared.plan, self._store, stage, self._shared.undefended)

    def _end(self, course: Course, message: str) -> None:
        self._record.save()
        self._store.clear_progress(course.candidate.purify.artifact)
        self._store.drop_checkpoint(course.candidate.purify.key)
        self._tell("ended", course, message)

    def _tell(self, kind: CandidateEventKind, course: Course, message: str = "") -> None:
        if self._on_event is not None:
            self._on_event(CandidateEvent(kind, course, message))


class _UnlessLost(tune.Stopper):
    """Ends the Tune run of candidates that are now another driver's."""

    def __init__(self, watch: CandidateWatch) -> None:
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, as the watch does."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Leave single candidates to ASHA."""
        return False

    def stop_all(self) -> bool:
        """Tell whether all must stop."""
        return self._watch.is_lost()


def _sampler(search: Search, begun: Sequence[Settings]) -> Any:
    if search.sampling == "random":
        return ListedSearcher(drawn_at_random(search))
    from ray.tune.search.optuna import OptunaSearch

    # those of an interrupted search come first: their looks are known, and Optuna learns from them
    points = [settings.given() for settings in begun]
    # with the same seed it would draw the same ones again
    return OptunaSearch(points_to_evaluate=points, seed=search.seed + len(points))


def _space(search: Search) -> dict[str, Any]:
    space = search.space
    found: dict[str, Any] = {"weight_factor": _domain(space.weight_factor)}
    if space.learning_rate is not None:
        found["learning_rate"] = _domain(space.learning_rate)
    if space.layers:
        found["layers"] = tune.choice(layer_sets(search))
    return found


def _domain(wanted: Range) -> Any:
    draw = tune.loguniform if wanted.log else tune.uniform
    return draw(wanted.low, wanted.high)


def _concurrency(shared: SearchContext) -> int:
    # Tune does not know the workers that a candidate starts; and Optuna should draw late
    launch = shared.work.launch
    demand, room = demand_of(shared.plan.template.purify, launch), ClusterCapacity(launch.grow_to)()
    side_by_side = room.cpus // demand.cpus
    if demand.gpus:
        side_by_side = min(side_by_side, room.gpus // demand.gpus)
    return max(1, int(side_by_side))
