"""Searches laid out as tables: the curve of scores by weight factor, and the comparison."""

from recipe_ray.experiment.search.compare import REGION_FACTOR
from recipe_ray.report.chance import MARK, RULE, marked
from recipe_ray.report.layout import ABSENT, Column, Table, percent
from recipe_ray.report.searches import CandidateSummary, SearchSummary

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
