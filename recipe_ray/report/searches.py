"""Searches summarised from result rows: candidates, their looks, and the full grid beside."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from recipe_ray.experiment.search.compare import GRID_SCORE, KIND
from recipe_ray.experiment.search.record import SCORE
from recipe_ray.experiment.search.settings import Settings
from recipe_ray.report.recorded import Recorded
from recipe_ray.stages.chance import learned


@dataclass(frozen=True)
class LookSummary:
    """ACC, MASR (fractions) and score after so many epochs; whether the look is at chance."""

    stage: str
    epoch: int
    acc: float
    masr: float
    score: float
    at_chance: bool = False


@dataclass(frozen=True)
class CandidateSummary:
    """One candidate; `ended` is stopped, finished, diverged or failed, None where unknown."""

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
    """One search; `compared` holds the comparison's values by name, empty where there is none."""

    experiment: str
    model: str
    attack: str
    task: str
    rungs: tuple[int, ...]
    rule: str | None
    trials: int | None
    candidates: tuple[CandidateSummary, ...]
    grid: Mapping[float, Sequence[float]]
    compared: Mapping[str, float]


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
    grid, compared = _compared(found)
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
        grid=grid,
        compared=compared,
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


def _compared(found: Recorded) -> tuple[dict[float, list[float]], dict[str, float]]:
    grid: dict[float, list[float]] = defaultdict(list)
    compared = {}
    for row in found.rows.filter(pc.equal(found.rows["kind"], KIND)).to_pylist():
        if row["metric"] == GRID_SCORE:
            grid[row["weight_factor"]].append(row["value"])
        else:
            compared[row["metric"]] = row["value"]
    return dict(sorted(grid.items())), compared
