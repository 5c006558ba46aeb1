"""The sweep: every stage of a plan that the store lacks, under one Tune run, parents first.

The store is the ledger. After Ctrl-C, a crash or a failure the same call does what is missing.
Several sweeps may share a store: each claims what it runs.
"""

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import tune

from recipe_ray.base.errors import TerminatedError
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.cluster import ClusterCapacity, connected
from recipe_ray.distributed.monitor import Monitor
from recipe_ray.distributed.train import SweepContext
from recipe_ray.distributed.trial import InOrder, StageSearcher, stage_trainable
from recipe_ray.distributed.watch import Watch
from recipe_ray.experiment.collect import collect_missing, plan_record
from recipe_ray.experiment.plan import Plan
from recipe_ray.schedule.resources import check_fits, demand_of
from recipe_ray.schedule.shared_queue import SharedQueue
from recipe_ray.schedule.stage_queue import StageQueue
from recipe_ray.schedule.sweep_progress import SweepEvent, SweepOutcome
from recipe_ray.store.store import Store

__all__ = ["SweepEvent", "SweepOutcome", "sweep"]


def sweep(
    plan: Plan,
    store: Store,
    locations: Locations,
    *,
    address: str | None = None,
    on_event: Callable[[SweepEvent], None] | None = None,
    on_doing: Callable[[str], None] = lambda what: None,
) -> SweepOutcome:
    """Run what the store lacks of `plan` on a Ray cluster, or on a local Ray without `address`.

    `on_doing` hears what is done before the first stage starts. A failed stage costs only its
    descendants. Raises UserError, before anything runs, for a stage that the cluster cannot hold;
    after KeyboardInterrupt the store can be continued.
    """
    started = time.monotonic()
    store.write_plan(plan.name, plan_record(plan))
    committed = store.committed()
    there = {key: stage for key, stage in plan.stages.items() if key in committed}
    collect_missing(plan, store, there.values())
    if on_event is not None:
        for stage in there.values():
            on_event(SweepEvent("skipped", stage))
    if there.keys() == plan.stages.keys():
        return SweepOutcome(skipped=tuple(there), wall_s=time.monotonic() - started)
    if there:
        on_doing(f"{len(there)} of {len(plan.stages)} stages are in the store; the others are run")
    launch = plan.launch
    missing = [stage for key, stage in plan.stages.items() if key not in there]
    nested = any(demand_of(stage, launch).nested for stage in missing)
    store.clear_scratch()
    driver = Monitor(plan, there, on_event)
    on_doing(starting_ray(address))
    with (
        # claims are released last, when no stage of ours runs any more
        store.claims(launch.claim_lease_s, driver.note) as claims,
        connected(address, launch, nested=nested),
    ):
        capacity = ClusterCapacity(launch.grow_to)
        check_fits(missing, launch, capacity())
        queue = StageQueue(plan.stages, committed, lambda stage: demand_of(stage, launch), capacity)
        watch = Watch(plan, store, queue, claims, driver)
        neighbours = SharedQueue(queue, claims, store, watch)
        work = SweepContext(plan.stages, store, locations, launch, plan.name)
        on_doing("starting the first processes: each imports torch before its first stage")
        try:
            _tune(work, StageSearcher(neighbours), watch)
        except KeyboardInterrupt as error:
            if type(error) in (KeyboardInterrupt, TerminatedError):  # else the cluster is lost
                on_doing("stopping what runs")
            raise
        finally:
            watch.forget_the_running()
    skipped = (*there, *watch.skipped)
    return SweepOutcome(tuple(watch.done), skipped, dict(watch.failed), time.monotonic() - started)


def starting_ray(address: str | None) -> str:
    """Return what `connected` is about to do, for people who wait."""
    if ray.is_initialized():
        return "using the Ray that runs already"
    place = address or os.environ.get("RAY_ADDRESS") or "local"
    return "starting Ray on this machine" if place == "local" else f"joining the Ray at {place}"


def _tune(work: SweepContext, searcher: StageSearcher, watch: Watch) -> None:
    scheduler: Any = InOrder
    # Tune's own files for restoring are not needed: the store is the ledger
    with tempfile.TemporaryDirectory(prefix="recipe-ray-tune-") as folder:
        tune.Tuner(
            stage_trainable(work),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler(),
                num_samples=-1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="sweep",
                storage_path=folder,
                verbose=0,
                callbacks=[watch],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=0),  # `LossCount` counts them
            ),
        ).fit()
