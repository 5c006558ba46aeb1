"""From a search to stages, and the record of what it has done so far.

The part before the candidates is an ordinary experiment, run by `sweep`; so is the confirmation.
Evaluations after an epoch are artifacts in the store. The course (which candidate was stopped when)
is kept as the plan of the search's name. So `status` and `report` see it, and a search that is
started again decides nothing twice.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, TypeAlias, cast

import pyarrow as pa

from recipe_ray.attacks.attack import NoAttack
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.base.spec import explained
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import COLLECTORS, bring_up_to_date
from recipe_ray.experiment.plan import Cell, Plan, make_plan
from recipe_ray.experiment.search import WORST, Search, Settings, score_of_displacement
from recipe_ray.experiment.spec import Experiment
from recipe_ray.learn.metrics import learned
from recipe_ray.stages.displacement import FARTHEST, LOSS, Displacement, DisplacementStage
from recipe_ray.stages.epoch_evals import PURIFY_S
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Stage
from recipe_ray.store.rows import Measurement, measurement_table
from recipe_ray.store.store import Store

# what decides which candidates there are and which of them are stopped
_DECIDES = ("space", "sampling", "epochs", "grace", "reduction", "score", "seed")
LookStage: TypeAlias = FinetuneStage | DisplacementStage


@dataclass(frozen=True)
class Candidate:
    """A purification and the look after each of its epochs."""

    settings: Settings
    purify: PurifyStage
    looks: tuple[LookStage, ...]


@dataclass(frozen=True)
class SearchPlan:
    """A search with its data resolved; picklable."""

    search: Search
    undefended: Plan
    template: Candidate

    @property
    def key(self) -> str:
        """The hash of what decides its course; with more trials the same search continues."""
        own = self.search.identity()
        looks = [look.key for look in self.template.looks]
        return fingerprint({**{name: own[name] for name in _DECIDES}, "looks": looks})

    @property
    def reference(self) -> Stage:
        """The undefended fine-tuning whose ACC scores may refer to."""
        return self.undefended.cells[0].last

    def undefended_in(self, store: Store) -> "Undefended":
        """Return what the store has of the undefended PTM's looks."""
        acc = value_of(store, self.reference, "acc")
        for cell in self.undefended.cells:
            if isinstance(cell.last, DisplacementStage):
                return Undefended(acc, _values(store, cell.last).get(LOSS))
        return Undefended(acc)

    def candidate(self, settings: Settings) -> Candidate:
        """Return the stages of a candidate."""
        purify = self.template.purify.revised(defense=settings.put_into(self.search))
        looks = tuple(look.revised(parent=purify) for look in self.template.looks)
        return Candidate(settings, purify, looks)

    def confirmation(self, survivors: Iterable[Settings], locations: Locations) -> Plan:
        """Return the grid of the survivors, the undefended PTM and the clean one, on test."""
        search = self.search
        common = {"tasks": search.confirm.tasks, "seeds": search.confirm.seeds}
        defenses = tuple(settings.put_into(search) for settings in survivors)
        undefended = {"attacks": (NoAttack(), search.attack), **common}
        purified = {"attacks": (search.attack,), "defenses": defenses, **common}
        blocks = [undefended, purified]
        return part_plan(search, "confirm", blocks, locations, finetuning=search.finetuning)


@dataclass(frozen=True)
class Undefended:
    """What candidates are compared with: ACC after a look's fine-tuning, pre-training loss."""

    acc: float
    loss: float | None = None


def make_search_plan(search: Search, locations: Locations) -> SearchPlan:
    """Resolve the data of a search; nothing is run.

    Raises DataError if data cannot be found, SpecError if model, corpus, task and attack do
    not fit each other.
    """
    common: dict[str, Any] = {"attacks": (search.attack,), "seeds": (search.seed,)}
    tuned = {**common, "tasks": (search.quick.task,)}
    moved = {**common, "displacements": (Displacement(task=search.quick.task),)}
    by_representation = search.rank_by == "representation"
    blocks = [tuned, moved] if by_representation else [tuned]
    undefended = part_plan(search, "undefended", blocks, locations)
    # any settings: candidates differ from it only in the defense
    settings = Settings(search.space.weight_factor.low)
    epochs = tuple(range(1, search.epochs + 1))
    purified = {"defenses": (settings.put_into(search),), "snapshots": epochs}
    blocks = [{**one, **purified} for one in blocks]
    found = [cell.last for cell in part_plan(search, "looks", blocks, locations).cells]
    looks: tuple[LookStage, ...] = tuple(one for one in found if isinstance(one, FinetuneStage))
    if by_representation:
        # those that come through all epochs are fine-tuned
        cheap = [one for one in found if isinstance(one, DisplacementStage)]
        looks = (*cheap[:-1], looks[-1])
    template = Candidate(settings, cast("PurifyStage", looks[0].parent), looks)
    return SearchPlan(search, undefended, template)


def part_plan(
    search: Search,
    part: str,
    blocks: list[dict[str, Any]],
    locations: Locations,
    **changes: Any,
) -> Plan:
    """Return the plan of a part of a search, named after both: blocks of a grid on its model.

    Raises SpecError or DataError as `make_search_plan` does.
    """
    name = f"{search.name}.{part}"
    fixed = {"models": (search.model,), "auxiliaries": (search.auxiliary,)}
    with explained(f"search {search.name}"):
        experiment = Experiment.model_validate(
            {
                "name": name,
                "description": f"{search.name}: {part}",
                "grid": tuple({**fixed, **block} for block in blocks),
                "finetuning": search.quick.fit,
                "pretraining": search.pretraining,
                "release_seed": search.release_seed,
                "launch": search.launch,
                **changes,
            }
        )
    return make_plan(experiment, locations)


SCORE = "score"  # metric of a search's rows
# diverged: its loss was not finite, which is the settings' fault and final; failed: it is tried
# again when the search is started again
Ending = Literal["stopped", "finished", "diverged", "failed"]
LOST = ("diverged", "failed")


@dataclass(frozen=True)
class Look:
    """What one look measured; the seconds are of its epoch and of the look itself.

    A look at representations has no ACC and no MASR, but `displacement` (the farthest trigger's).
    `at_chance`: the classifier learned nothing, so MASR says nothing and the score is the worst.
    """

    epoch: int
    score: float
    purify_s: float
    look_s: float
    _: KW_ONLY
    acc: float | None = None
    masr: float | None = None
    displacement: float | None = None
    at_chance: bool = False


@dataclass
class Course:
    """One candidate: the looks taken so far and how it ended, None while it has not."""

    candidate: Candidate
    looks: dict[int, Look] = field(default_factory=dict)
    ended: Ending | None = None

    @property
    def epochs(self) -> int:
        """Epochs looked at so far."""
        return max(self.looks, default=0)

    @property
    def last(self) -> Look | None:
        """The latest look."""
        return self.looks[self.epochs] if self.looks else None


class Record:
    """The courses of a search's candidates, kept in the store as they change."""

    def __init__(self, plan: SearchPlan, store: Store) -> None:
        self._plan = plan
        self._store = store
        self.courses: dict[Settings, Course] = {}

    @classmethod
    def load(cls, plan: SearchPlan, store: Store, undefended: Undefended) -> "Record":
        """Return what the store has of this very search; for one with other rules, nothing."""
        record = cls(plan, store)
        stages: list[LookStage] = []
        for one in _kept(plan, store).get("candidates", ()):
            course = record.begin(Settings(**one["settings"]))
            stages += course.candidate.looks[: one["epochs"]]
            course.ended = one["ended"] if one["ended"] != "failed" else None

        def read(stage: LookStage) -> Look:
            look = look_at(plan, store, stage, undefended)
            record._collect(look, stage)
            return look

        courses = {course.candidate.purify.key: course for course in record.courses.values()}
        with ThreadPoolExecutor(COLLECTORS) as pool:
            for stage, look in zip(stages, pool.map(read, stages), strict=True):
                assert stage.parent is not None
                courses[stage.parent.key].looks[look.epoch] = look
        return record

    def begin(self, settings: Settings) -> Course:
        """Return the course of a candidate, a new one if it has none."""
        if settings not in self.courses:
            self.courses[settings] = Course(self._plan.candidate(settings))
        return self.courses[settings]

    def add(self, course: Course, look: Look, stage: Stage) -> None:
        """Note a look, and bring its rows in the search's results up to date."""
        course.looks[look.epoch] = look
        self._collect(look, stage)

    def _collect(self, look: Look, stage: Stage) -> None:
        def with_score() -> pa.Table:
            rows = self._store.rows(stage.artifact)
            scored = Measurement(SCORE, look.score, epoch=look.epoch)
            facts = rows.select(["wall_s", "world_size", "versions", "git_commit", "time"])
            common = {**stage.columns(), **facts.slice(0, 1).to_pylist()[0]}
            return pa.concat_tables([rows, measurement_table([scored], common)])

        name, cell = self._plan.search.name, stage.key[:8]
        bring_up_to_date(self._store, name, stage, [cell], with_score, score=look.score)

    @property
    def ended(self) -> dict[Settings, tuple[int, Ending]]:
        """For each ended candidate, its number of epochs and how it ended."""
        return {s: (c.epochs, c.ended) for s, c in self.courses.items() if c.ended}

    @property
    def is_over(self) -> bool:
        """Whether all candidates have ended."""
        return len(self.ended) >= self._plan.search.trials

    def ranked(self) -> list[Course]:
        """Return the courses that did not fail, those with most epochs first, then by score.

        Those whose last look is at chance come last.
        """
        looked = [c for c in self.courses.values() if c.last and c.ended not in LOST]
        return sorted(looked, key=_rank, reverse=True)

    def save(self, *, over: bool = False) -> None:
        """Write the course of the search; `over`: nothing is left to do, confirmation included."""
        search = self._plan.search
        cells = [
            Cell(look.key[:8], tuple(look.lineage()))
            for course in self.courses.values()
            for look in course.candidate.looks[: course.epochs]
        ]
        course = [
            {"settings": s.given(), "epochs": c.epochs, "ended": c.ended}
            for s, c in self.courses.items()
        ]
        self._store.write_plan(
            search.name,
            {
                "experiment": search.name,
                "paper": None,
                "cells": [{"id": c.id, "title": c.title, "stages": [c.last.key]} for c in cells],
                "stages": {c.last.key: _about(c.last) for c in cells},
                "search": {
                    "key": self._plan.key,
                    "trials": search.trials,
                    "rungs": search.rungs,
                    "score": search.score.model_dump(mode="json"),
                    "candidates": course,
                    "over": over,
                },
            },
        )


def is_over(plan: SearchPlan, store: Store) -> bool:
    """Tell whether nothing of this very search is left to do."""
    kept = _kept(plan, store)
    failed = any(one["ended"] == "failed" for one in kept.get("candidates", ()))
    return bool(kept.get("over")) and kept["trials"] == plan.search.trials and not failed


def look_at(plan: SearchPlan, store: Store, look: Stage, undefended: Undefended) -> Look:
    """Return what a committed look measured, and its score, which is WORST at chance."""
    measured = store.rows(look.artifact).to_pylist()
    rows = {row["metric"]: row for row in measured}
    purify_s = rows[PURIFY_S]["value"] if PURIFY_S in rows else 0.0
    common = (look.columns()["epoch"] or 0,)
    seconds = (purify_s, next(iter(rows.values()))["wall_s"] or 0.0)
    if isinstance(look, DisplacementStage):
        far = rows[FARTHEST]["value"]
        known = LOSS in rows and undefended.loss is not None
        rise = rows[LOSS]["value"] - undefended.loss if known else 0.0
        return Look(*common, score_of_displacement(far, rise), *seconds, displacement=far)
    acc, masr = rows["acc"]["value"], rows["masr"]["value"]
    told = learned(measured)
    at_chance = told is not None and told.at_chance
    score = WORST if at_chance else plan.search.score.of(acc, masr, undefended.acc)
    return Look(*common, score, *seconds, acc=acc, masr=masr, at_chance=at_chance)


def _values(store: Store, stage: Stage) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in store.rows(stage.artifact).to_pylist()}


def value_of(store: Store, stage: Stage, metric: str) -> float:
    """Return the one value of a metric that a committed stage measured."""
    rows = store.rows(stage.artifact).to_pylist()
    (found,) = [row["value"] for row in rows if row["metric"] == metric]
    return float(found)


def _kept(plan: SearchPlan, store: Store) -> dict[str, Any]:
    kept: dict[str, Any] = (store.plan(plan.search.name) or {}).get("search", {})
    return kept if kept.get("key") == plan.key else {}


def _rank(course: Course) -> tuple[bool, int, float]:
    assert course.last is not None
    return not course.last.at_chance, course.last.epoch, course.last.score


def _about(stage: Stage) -> dict[str, Any]:
    return {"kind": stage.name, "label": stage.label(), "seed": stage.seed, "parent": None}
