"""A search: the undefended PTM, candidates under ASHA, the full grid, the best on test data.

Everything but the candidates is a sweep. The store is the ledger here, too: started again, a search
goes on, and one that is done does nothing.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from recipe_ray.base.errors import StageFailedError
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.cluster import connected
from recipe_ray.distributed.events import SweepEvent, SweepOutcome
from recipe_ray.distributed.note import kept_note
from recipe_ray.distributed.search.asha import CandidateEvent, require_sampler, run_asha
from recipe_ray.distributed.search.standing import Standing
from recipe_ray.distributed.search.turn import turn
from recipe_ray.distributed.search.work import SearchWork
from recipe_ray.distributed.sweep import sweep
from recipe_ray.distributed.work import Work
from recipe_ray.experiment.demand import demand_of
from recipe_ray.experiment.plan import Plan
from recipe_ray.experiment.search.compare import (
    Comparison,
    compare,
    comparison_stage,
    grid_scores,
    write_comparison,
)
from recipe_ray.experiment.search.plan import SearchPlan
from recipe_ray.experiment.search.record import Record, is_over, value_of
from recipe_ray.experiment.search.settings import Settings
from recipe_ray.stages.chance import learned
from recipe_ray.stages.store import Store

__all__ = ["CandidateEvent", "SearchOutcome", "SearchWatcher", "search"]


logger = logging.getLogger("recipe_ray")
_LEARN_MORE = "fine-tune longer (quick.fit.epochs) or on more data (quick.task.train_size)"


@dataclass(frozen=True)
class SearchOutcome:
    """The best candidates in order, the comparison (None without a grid), and what failed, why."""

    survivors: tuple[Settings, ...]
    comparison: Comparison | None
    failed: dict[str, str]


@dataclass(frozen=True)
class SearchWatcher:
    """Who is told what: a part's title and its number of stages or candidates, then events."""

    on_part: Callable[[str, int], None] = lambda title, count: None
    on_stage: Callable[[SweepEvent], None] = lambda event: None
    on_candidate: Callable[[CandidateEvent], None] = lambda event: None
    on_wait: Callable[[str], None] = lambda driver: None  # another one runs the candidates


def search(
    plan: SearchPlan,
    store: Store,
    locations: Locations,
    *,
    address: str | None = None,
    watcher: SearchWatcher | None = None,
) -> SearchOutcome:
    """Run what the store lacks of a search, on a Ray cluster or a local Ray without `address`.

    Raises UserError before anything runs where the cluster cannot hold a stage, and
    StageFailedError where the undefended PTM or every candidate failed, or all are at chance.
    """
    require_sampler(plan.search)
    watcher = watcher or SearchWatcher()
    if is_over(plan, store):
        return _searched(plan, store, locations, watcher, address)
    standing = Standing(plan.search.trials)
    # one Ray for all parts
    with kept_note(store, plan.search.name, standing.note), _ray(plan, address):
        return _searched(plan, store, locations, _overheard(watcher, standing), address)


def _searched(
    plan: SearchPlan,
    store: Store,
    locations: Locations,
    watcher: SearchWatcher,
    address: str | None,
) -> SearchOutcome:
    def swept(part: Plan, title: str) -> SweepOutcome:
        watcher.on_part(title, len(part.stages))
        return sweep(part, store, locations, address=address, on_event=watcher.on_stage)

    _refuse_failures(swept(plan.undefended, "the undefended PTM"))
    undefended_acc = value_of(store, plan.reference, "acc")
    known = learned(store.rows(plan.reference.artifact).to_pylist())
    if known is not None and known.at_chance:
        logger.warning("the undefended PTM's look is at chance: %s; %s", known, _LEARN_MORE)
    record = _with_candidates(plan, store, locations, undefended_acc, watcher)
    best = _above_chance(record)
    failed = dict[str, str]()
    comparison = None
    if plan.grid is not None:
        failed |= swept(plan.grid, "the full grid, to compare with").failed
        if not failed:
            comparison = compare(plan, record, store, undefended_acc)
            scores = grid_scores(plan, store, undefended_acc)
            write_comparison(plan, store, comparison, scores)
    survivors = tuple(best[: plan.search.confirm.survivors])
    failed |= swept(plan.confirmation(survivors, locations), "the best, on test data").failed
    extra = comparison_stage(plan) if comparison is not None else {}
    record.save(extra, over=record.is_over and not failed)
    return SearchOutcome(survivors, comparison, failed)


def _with_candidates(
    plan: SearchPlan,
    store: Store,
    locations: Locations,
    undefended_acc: float,
    watcher: SearchWatcher,
) -> Record:
    """Return the record of candidates that have all ended, run here as far as they had not."""
    watcher.on_part(f"candidates, compared after epochs {_listed(plan)}", plan.search.trials)
    record = Record.load(plan, store, undefended_acc)
    if record.is_over:
        _tell_ended(record, watcher)
        return record
    launch = plan.search.launch
    with turn(store, plan.key, launch.claim_lease_s, watcher.on_wait):
        record = Record.load(plan, store, undefended_acc)  # of another driver, meanwhile
        _tell_ended(record, watcher)
        if not record.is_over:
            work = Work({}, store, locations, launch, plan.search.name)
            shared = SearchWork(plan, work, undefended_acc, record.ended)
            run_asha(shared, record, watcher.on_candidate)
    return record


def _above_chance(record: Record) -> list[Settings]:
    ranked = record.ranked()
    if not ranked:
        raise StageFailedError("every candidate failed; why: recipe-ray status")
    above = [course for course in ranked if course.last and not course.last.at_chance]
    if not above:
        raise StageFailedError(
            "every candidate is at chance at its last look: ACC is not above the share of the "
            f"largest class, so MASR says nothing and none can be chosen; {_LEARN_MORE}, or search "
            "smaller weight factors"
        )
    return [course.candidate.settings for course in above]


def _tell_ended(record: Record, watcher: SearchWatcher) -> None:
    for course in record.courses.values():
        if course.ended is not None:
            watcher.on_candidate(CandidateEvent("skipped", course))


def _overheard(watcher: SearchWatcher, standing: Standing) -> SearchWatcher:
    def on_part(title: str, count: int) -> None:
        standing.on_part(title)
        watcher.on_part(title, count)

    def on_candidate(event: CandidateEvent) -> None:
        standing.on_candidate(event)
        watcher.on_candidate(event)

    return replace(watcher, on_part=on_part, on_candidate=on_candidate)


def _ray(plan: SearchPlan, address: str | None) -> AbstractContextManager[None]:
    launch = plan.search.launch
    stages = plan.template.looks[-1].lineage()
    nested = any(demand_of(stage, launch).nested for stage in stages)
    return connected(address, launch, nested=nested)


def _refuse_failures(outcome: SweepOutcome) -> None:
    if outcome.failed:
        raise StageFailedError("\n".join(outcome.failed.values()))


def _listed(plan: SearchPlan) -> str:
    return ", ".join(map(str, plan.search.rungs))
