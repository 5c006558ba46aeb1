"""A candidate of a search on several DDP workers: Train reports to Tune through a queue."""

from typing import Any

import ray.train
from ray.tune.integration.ray_train import TuneReportCallback

from recipe_ray.distributed.feed import RayFeed, Reading
from recipe_ray.distributed.search.work import SearchWork, result_of
from recipe_ray.distributed.train import observed_worker, on_workers
from recipe_ray.distributed.work import Work
from recipe_ray.experiment.search.plan import Candidate
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.looks import purify_with_looks
from recipe_ray.stages.run import scratch
from recipe_ray.stages.stage import Context, Stage


def run_on_workers(
    candidate: Candidate, looks: tuple[FinetuneStage, ...], shared: SearchWork
) -> None:
    """Purify with looks on a worker group; every look is reported by all workers, rank 0's counts.

    Tune stops it from outside: the group dies with the trial that started it.
    """

    def do(stage: Stage, work: Work, readings: tuple[Reading, ...]) -> None:
        feed = RayFeed(readings, work.launch.stream)
        with observed_worker(stage, work) as seen, scratch(work.store) as folder:
            runtime = seen.runtime

            def report(look: FinetuneStage) -> None:
                result: dict[str, Any] = result_of(look, shared) if runtime.rank == 0 else {}
                ray.train.report(result)

            context = Context(work.store, feed, work.locations, runtime, folder)
            purify_with_looks(candidate.purify, looks, context, report)

    to_tune: Any = TuneReportCallback  # untyped
    on_workers(do, candidate.purify, shared.work, callbacks=[to_tune()])
