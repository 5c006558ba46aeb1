"""A search: the undefended PTM, candidates under ASHA, the best of them on test data.

Everything except the candidates is a sweep. The store is the ledger here, too: a search that is
started again continues, and one that is done does nothing. If several drivers have one search on
one store, one of them holds its lock and runs its candidates.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from recipe_ray.base.errors import StageFailedError
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.asha import CandidateEvent, SearchContext, require_sampler, run_asha
from recipe_ray.distributed.cluster import connected
from recipe_ray.distributed.sweep import starting_ray, sweep
from recipe_ray.distributed.train import SweepContext
from recipe_ray.experiment.plan import Plan
from recipe_ray.experiment.search import Search, Settings
from recipe_ray.experiment.search_plan import (
    LOST,
    Course,
    Ending,
    Record,
    SearchPlan,
    Undefended,
    is_over,
)
from recipe_ray.learn.metrics import learned
from recipe_ray.schedule.resources import demand_of
from recipe_ray.schedule.shared_queue import LOOK_EVERY_S
from recipe_ray.schedule.sweep_progress import SweepEvent, SweepOutcome, at_work
from recipe_ray.store.claims import Claims
from recipe_ray.store.store import Store


class SearchProgress:
    """Counts candidates while a search runs; a thread asks for its note."""

    def __init__(self, wanted: Search) -> None:
        self._experiment, self._trials = wanted.name, wanted.trials
        self._part = "starting"
        self._ended: dict[Settings, Ending] = {}
        self._running: dict[Settings, tuple[Course, float]] = {}
        self._lock = threading.Lock()

    def on_part(self, title: str) -> None:
        """Hear which part of the search begins."""
        with self._lock:
            self._part = title

    def on_candidate(self, event: CandidateEvent) -> None:
        """Hear what happened to a candidate."""
        course = event.course
        settings = course.candidate.settings
        with self._lock:
            if course.ended is None:
                self._running.setdefault(settings, (course, time.monotonic()))
            else:
                self._running.pop(settings, None)
                self._ended[settings] = course.ended

    def note(self) -> dict[str, Any]:
        """Return what the driver's lease says: counts, and the purifications that run."""
        now = time.monotonic()
        with self._lock:
            purifications = [
                (c.candidate.purify, now - since) for c, since in self._running.values()
            ]
            failed = sum(ending in LOST for ending in self._ended.values())
            ended, part = len(self._ended), self._part
        states = {
            "waiting": max(0, self._trials - ended - len(purifications)),
            "running": len(purifications),
            "done": ended - failed,
            "failed": failed,
        }
        return {
            "experiment": self._experiment,
            "counted": "candidates",
            "part": part,
            "states": states,
            "left_s": None,  # which candidates are stopped is not known before
            "running": at_work(purifications),
        }


class SearchLock:
    """Whether the candidates of a search are still this driver's."""

    def __init__(self, claims: Claims, key: str) -> None:
        self._claims, self._key = claims, key
        self._looked = time.monotonic()

    def is_lost(self) -> bool:
        """Tell whether others counted this driver as dead; the store is asked every two seconds."""
        now = time.monotonic()
        if now - self._looked >= LOOK_EVERY_S and self._key not in self._claims.lost:
            self._looked = now
            self._claims.held()
        return self._key in self._claims.lost


@contextmanager
def search_lock(claims: Claims, key: str, on_wait: Callable[[str], None]) -> Iterator[SearchLock]:
    """Hold a search's candidates; wait while another living driver does, and say which, once."""
    told = ""
    while (other := _other(claims, key)) is not None:
        if other != told:
            on_wait(claims.who(other))
            told = other
        time.sleep(LOOK_EVERY_S)
    yield SearchLock(claims, key)
    claims.release(key)  # if an error ends the search, the end of its claims releases it


def _other(claims: Claims, key: str) -> str | None:
    """Return who holds it, None once it is ours."""
    holder = claims.held().get(key)
    if holder is None and not claims.take(key):
        holder = claims.held().get(key, "another driver")
    return holder


__all__ = ["CandidateEvent", "SearchOutcome", "SearchWatcher", "search"]


logger = logging.getLogger("recipe_ray")
_LEARN_MORE = "fine-tune longer (quick.fit.epochs) or on more data (quick.task.train_size)"


@dataclass(frozen=True)
class SearchOutcome:
    """The best candidates in order, and what failed and why."""

    survivors: tuple[Settings, ...]
    failed: dict[str, str]


@dataclass(frozen=True)
class SearchWatcher:
    """Hears a part's title and its number of stages or candidates, then events."""

    on_part: Callable[[str, int], None] = lambda title, count: None
    on_stage: Callable[[SweepEvent], None] = lambda event: None
    on_candidate: Callable[[CandidateEvent], None] = lambda event: None
    on_wait: Callable[[str], None] = lambda driver: None  # another one runs the candidates
    on_doing: Callable[[str], None] = lambda what: None  # before the first stage starts


def search(
    plan: SearchPlan,
    store: Store,
    locations: Locations,
    *,
    address: str | None = None,
    watcher: SearchWatcher | None = None,
) -> SearchOutcome:
    """Run what the store lacks of a search, on a Ray cluster or a local Ray without `address`.

    Raises UserError before anything runs if the cluster cannot hold a stage, and
    StageFailedError if the undefended PTM or every candidate failed, or all are at chance.
    """
    require_sampler(plan.search)
    watcher = watcher or SearchWatcher()
    standing = SearchProgress(plan.search)
    # one Ray for all parts; none if nothing is left to do
    if is_over(plan, store):
        own_ray: AbstractContextManager[None] = nullcontext()
    else:
        watcher.on_doing(starting_ray(address))
        own_ray = _ray(plan, address)
    with store.claims(plan.search.launch.claim_lease_s, standing.note) as claims, own_ray:
        heard = _overheard(watcher, standing)
        return _searched(plan, store, locations, heard, claims, address)


def _searched(
    plan: SearchPlan,
    store: Store,
    locations: Locations,
    watcher: SearchWatcher,
    claims: Claims,
    address: str | None,
) -> SearchOutcome:
    def swept(part: Plan, title: str) -> SweepOutcome:
        watcher.on_part(title, len(part.stages))
        on_event, on_doing = watcher.on_stage, watcher.on_doing
        return sweep(part, store, locations, address=address, on_event=on_event, on_doing=on_doing)

    _refuse_failures(swept(plan.undefended, "the undefended PTM"))
    undefended = plan.undefended_in(store)
    known = learned(store.rows(plan.reference.artifact).to_pylist())
    if known is not None and known.at_chance:
        logger.warning("the undefended PTM's look is at chance: %s; %s", known, _LEARN_MORE)
    record = _with_candidates(plan, store, locations, undefended, watcher, claims)
    best = _above_chance(record)
    survivors = tuple(best[: plan.search.confirm.survivors])
    failed = swept(plan.confirmation(survivors, locations), "the best, on test data").failed
    record.save(over=record.is_over and not failed)
    return SearchOutcome(survivors, failed)


def _with_candidates(
    plan: SearchPlan,
    store: Store,
    locations: Locations,
    undefended: Undefended,
    watcher: SearchWatcher,
    claims: Claims,
) -> Record:
    """Return the record of candidates that have all ended; those that had not are run here."""
    watcher.on_part(f"candidates, compared after epochs {_listed(plan)}", plan.search.trials)
    launch, told = plan.search.launch, set[Settings]()
    record = Record.load(plan, store, undefended)
    if record.is_over:
        _tell_ended(record, watcher, told)
        return record
    while True:
        with search_lock(claims, plan.key, watcher.on_wait) as lock:
            record = Record.load(plan, store, undefended)  # by another driver, meanwhile
            _tell_ended(record, watcher, told)
            if not record.is_over:
                work = SweepContext({}, store, locations, launch, plan.search.name)
                shared = SearchContext(plan, work, undefended, record.ended)
                run_asha(shared, record, watcher.on_candidate, lock.is_lost)
            if not lock.is_lost():
                return record
            told |= record.ended.keys()
        logger.warning(
            "the candidates of %s were taken over by another driver, which had not heard of this "
            "one for %.0f s: they are stopped here, and waited for",
            *(plan.search.name, launch.claim_lease_s),
        )


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


def _tell_ended(record: Record, watcher: SearchWatcher, told: set[Settings]) -> None:
    for settings, course in record.courses.items():
        if course.ended is not None and settings not in told:
            watcher.on_candidate(CandidateEvent("skipped", course))


def _overheard(watcher: SearchWatcher, standing: SearchProgress) -> SearchWatcher:
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
