"""Searches summarised from result rows and laid out as tables: scores, and the comparison."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from recipe_ray.experiment.search import Settings
from recipe_ray.experiment.search_comparison import GRID_SCORE, KIND, REGION_FACTOR
from recipe_ray.experiment.search_plan import SCORE
from recipe_ray.learn.metrics import learned
from recipe_ray.report.load import Recorded
from recipe_ray.report.tables import ABSENT, MARK, RULE, Column, Table, marked, percent


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


EXPLANATION = (
    "Dev data; ACC, MASR and scores in points (percent). score: ACC - MASR; by rule masr-with-acc "
    "-MASR, and below -100 where too much ACC is lost. stopped: not among the best at its last "
    "epoch, as far as was known then."
)
COMPARED = (
    "epochs of purification, fine-tunings, seconds of both added up over all processes; the full "
    "grid's are those of one seed. found: the best weight factor and its score."
)


def search_tables(search: SearchSummary) -> list[Table]:
    """Return the curve, then the comparison where the full grid has been run."""
    return [_curve(search), *([_comparison(search)] if search.compared else [])]


def _curve(search: SearchSummary) -> Table:
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


def _comparison(search: SearchSummary) -> Table:
    found = search.compared
    spent, best = "spent", "found"
    columns = (
        Column("", ""),
        *(Column(spent, name) for name in ("epochs", "fine-tunings", "seconds")),
        *(Column(best, name) for name in ("weight factor", "score")),
    )
    rows = [
        (
            title,
            *(f"{found[f'{who}_{what}']:.0f}" for what in ("epochs", "finetunings", "s")),
            f"{found[f'{who}_best_weight_factor']:g}",
            percent(found[f"{who}_best_score"]),
        )
        for title, who in (("search", "search"), ("full grid", "grid"))
    ]
    saved = (percent(found["epochs_saved"]), ABSENT, percent(found["seconds_saved"]))
    rows.append(("saved, %", *saved, ABSENT, ABSENT))
    title = f"{search.experiment}: the search and the full grid"
    return Table(title, columns, tuple(rows), COMPARED, (_verdict(search),))


def _verdict(search: SearchSummary) -> str:
    found = search.compared
    same = "the same region" if found["same_region"] else "NOT the same region"
    return (
        f"Found {same}: the search's best is to be within a factor of {REGION_FACTOR:g} of a "
        "weight factor of the grid whose score is the grid's best but for the spread over seeds "
        f"({percent(found['spread'])} points), and its score not lower than that. Without stopping "
        f"its candidates would have taken {found['all_epochs']:.0f} epochs."
    )
