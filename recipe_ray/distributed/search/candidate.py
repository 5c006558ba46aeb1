"""One candidate of a search as a Tune trial: it reports every look and is stopped between two.

Looks that the store has are reported at once. With one worker the purification runs in the trial's
own process, which waits at each report for Tune's verdict; with more, in a Train worker group.
"""

from typing import Any

from ray import tune

from recipe_ray.base.errors import NonFiniteLossError
from recipe_ray.data.feed import LocalFeed
from recipe_ray.distributed.losses import WorkersLostError
from recipe_ray.distributed.metrics import StageMetrics
from recipe_ray.distributed.search.work import (
    DIVERGED,
    EPOCH,
    SearchWork,
    result_of,
)
from recipe_ray.distributed.trial import FAILURE, WARNINGS
from recipe_ray.distributed.work import use_threads
from recipe_ray.experiment.demand import demand_of
from recipe_ray.experiment.search.plan import Candidate
from recipe_ray.experiment.search.record import SCORE
from recipe_ray.experiment.search.settings import Settings
from recipe_ray.experiment.search.spec import WORST
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.stages.attempt import failure_note, observed, warnings_heard
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.looks import purify_with_looks
from recipe_ray.stages.run import scratch
from recipe_ray.stages.stage import Context


def run_candidate(config: dict[str, Any], shared: SearchWork) -> None:
    """Report the looks of the candidate that the configuration holds, until told to stop.

    A purification that fails is reported as the worst there is, so that the search goes on.
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


def _known(candidate: Candidate, shared: SearchWork) -> list[FinetuneStage]:
    known = []
    for look in candidate.looks:
        if not shared.work.store.has(look.artifact):
            break
        known.append(look)
    return known


def _purify(candidate: Candidate, looks: tuple[FinetuneStage, ...], shared: SearchWork) -> None:
    if not looks:
        return
    demand = demand_of(candidate.purify, shared.work.launch)
    if demand.nested:
        from recipe_ray.distributed.search.group import run_on_workers  # 3 s to import

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

        def report(look: FinetuneStage) -> None:
            tune.report({**result_of(look, shared), WARNINGS: [*heard]})
            heard.clear()

        purify_with_looks(candidate.purify, looks, context, report)
