"""Searches summarised from result rows and laid out as a table: scores by candidate and rung."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from recipe_ray.experiment.search import Settings
from recipe_ray.experiment.search_plan import SCORE
from recipe_ray.learn.metrics import learned
from recipe_ray.report.load import Recorded
from recipe_ray.report.tables import ABSENT, MARK, RULE, Column, Table, marked, percent


@dataclass(frozen=True)
class LookSummary:
    """ACC, MASR (fractions) and score after so many epochs; whether the look is at chance.

    A look at representations has no ACC and MASR.
    """

    stage: str
    epoch: int
    score: float
    acc: float | None = None
    masr: float | None = None
    at_chance: bool = False


@dataclass(frozen=True)
class CandidateSummary:
    """One candidate; `ended` is stopped, finished, diverged or failed, None if unknown."""

    defense: str
    weight_factor: float
    ended: str | None
    looks: tuple[LookSummary, ...]

    @property
    def last(self) -> LookSummary:
        """The look after most epochs."""
        return self.looks[-1]


@dataclass(frozen=True)
class SearchSummary:
    """One search; what only its plan says is None if the plan was not kept."""

    experiment: str
    model: str
    attack: str
    task: str
    rungs: tuple[int, ...]
    rule: str | None
    trials: int | None
    candidates: tuple[CandidateSummary, ...]


def summarise_search(found: Recorded) -> SearchSummary | None:
    """Return the summary of a search, candidates by weight factor; None for another experiment."""
    looks = _looks(found)
    if not looks:
        return None
    about: dict[str, Any] = (found.plan or {}).get("search", {})
    endings = {Settings(**one["settings"]): one["ended"] for one in about.get("candidates", ())}
    by_title = {settings.title(): ended for settings, ended in endings.items()}
    candidates = [
        CandidateSummary(defense, factor, _ending(defense, by_title), tuple(taken))
        for (defense, factor), taken in sorted(looks.items(), key=lambda one: one[0][::-1])
    ]
    epochs = sorted({look.epoch for one in candidates for look in one.looks})
    first = next(row for row in found.rows.to_pylist() if row["metric"] == SCORE)
    return SearchSummary(
        found.experiment,
        model=first["model"],
        attack=first["attack"],
        task=first["task"],
        rungs=tuple(about.get("rungs", epochs)),
        rule=about.get("score", {}).get("rule"),
        trials=about.get("trials"),
        candidates=tuple(candidates),
    )


def _looks(found: Recorded) -> dict[tuple[str, float], list[LookSummary]]:
    if not pc.any(pc.equal(found.rows["metric"], SCORE)).as_py():
        return {}
    by_stage: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in found.rows.to_pylist():
        by_stage[row["stage"]].append(row)
    looks: dict[tuple[str, float], list[LookSummary]] = defaultdict(list)
    for stage, rows in by_stage.items():
        values = {r["metric"]: r["value"] for r in rows if r["metric"] in ("acc", "masr", SCORE)}
        if SCORE in values:
            about = next(row for row in rows if row["metric"] == SCORE)
            known = learned(rows)
            at_chance = known is not None and known.at_chance
            look = LookSummary(stage, about["epoch"], **values, at_chance=at_chance)
            looks[about["defense"], about["weight_factor"]].append(look)
    return {name: sorted(own, key=lambda one: one.epoch or 0) for name, own in looks.items()}


def _ending(defense: str, by_title: Mapping[str, str | None]) -> str | None:
    return next((e for title, e in by_title.items() if defense.endswith(f"-{title}")), None)


EXPLANATION = (
    "Dev data; ACC, MASR and scores in points (percent). score: ACC - MASR; by rule masr-with-acc "
    "-MASR, and below -100 where too much ACC is lost; of representations -d / (1 + d) for a "
    "farthest displacement d, and below -100 where the model was damaged. stopped: not among the "
    "best at its last epoch, as far as was known then."
)


def search_table(search: SearchSummary) -> Table:
    """Return the curve: one row per candidate, by weight factor, and one column per rung."""
    score, last = "score after epoch", "last look"
    columns = (
        *(Column("", name) for name in ("candidate", "ended")),
        *(Column(score, str(rung)) for rung in search.rungs),
        *(Column(last, name) for name in ("epoch", "ACC", "MASR")),
    )
    rows = tuple(_row(one, search.rungs) for one in search.candidates)
    about = f"{search.model}, {search.attack}, {search.task}"
    some = any(look.at_chance for one in search.candidates for look in one.looks)
    notes = (f"{MARK} {RULE}, so its MASR says nothing: a search counts it as the worst.",)
    title = f"{search.experiment}: search, {about}"
    return Table(title, columns, rows, EXPLANATION, notes if some else ())


def _row(one: CandidateSummary, rungs: tuple[int, ...]) -> tuple[str, ...]:
    scores = {look.epoch: marked(percent(look.score), look.at_chance) for look in one.looks}
    last = one.last
    return (
        *(one.defense, one.ended or ABSENT),
        *(scores.get(rung, ABSENT) for rung in rungs),
        str(last.epoch),
        *(marked(percent(value), last.at_chance) for value in (last.acc, last.masr)),
    )
