"""What a search spent and found, beside the full grid of the same weight factors.

The rule. The grid's region is every weight factor whose score (mean over seeds) is within `spread`
of the grid's best, where the spread is how far the seeds' scores at that best lie apart (0 with one
seed). The search agrees if its best weight factor is within a factor of 2 of the region, and its
score is not lower than the grid's best by more than the spread.
"""

from collections import defaultdict
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import pyarrow as pa

from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.experiment.search_plan import Record, SearchPlan, look_at
from recipe_ray.store.rows import Measurement, measurement_table, result_rows
from recipe_ray.store.store import Store

KIND = "search"  # of the rows that hold a comparison
GRID_SCORE = "grid_score"
REGION_FACTOR = 2.0


@dataclass(frozen=True)
class Comparison:
    """Costs are of purification epochs, looks or fine-tunings, and seconds of both together.

    The grid's are those of one seed. `all_epochs`: what the candidates would have taken unstopped.
    """

    search_epochs: float
    search_finetunings: float
    search_s: float
    all_epochs: float
    grid_epochs: float
    grid_finetunings: float
    grid_s: float
    epochs_saved: float  # a fraction of the grid's; negative where the search took more
    seconds_saved: float
    search_best_score: float
    search_best_weight_factor: float
    grid_best_score: float
    grid_best_weight_factor: float
    spread: float
    same_region: float  # 1 or 0, by the rule


def compare(plan: SearchPlan, record: Record, store: Store, undefended_acc: float) -> Comparison:
    """Return the comparison; the grid must be in the store, and a candidate must have a look."""
    scores = grid_scores(plan, store, undefended_acc)
    assert plan.grid is not None
    assert plan.search.grid is not None
    best = record.ranked()[0]
    assert best.last is not None
    looks = [look for course in record.courses.values() for look in course.looks.values()]
    search_s = sum(look.purify_s + look.finetune_s for look in looks)
    points = len(plan.search.grid.weight_factors)
    grid_epochs = points * plan.search.epochs
    grid_s = _grid_seconds(plan, store)
    means = {factor: fmean(by_seed) for factor, by_seed in scores.items()}
    top = max(means, key=lambda factor: means[factor])
    spread = max(scores[top]) - min(scores[top])
    found = best.candidate.settings.weight_factor
    region = [factor for factor, mean in means.items() if mean >= means[top] - spread]
    near = any(1 / REGION_FACTOR <= found / factor <= REGION_FACTOR for factor in region)
    return Comparison(
        search_epochs=len(looks),
        search_finetunings=len(looks),
        search_s=search_s,
        all_epochs=len(record.courses) * plan.search.epochs,
        grid_epochs=grid_epochs,
        grid_finetunings=points,
        grid_s=grid_s,
        epochs_saved=1 - len(looks) / grid_epochs,
        seconds_saved=1 - search_s / grid_s if grid_s else 0.0,
        search_best_score=best.last.score,
        search_best_weight_factor=found,
        grid_best_score=means[top],
        grid_best_weight_factor=top,
        spread=spread,
        same_region=float(near and best.last.score >= means[top] - spread),
    )


def grid_scores(plan: SearchPlan, store: Store, undefended_acc: float) -> dict[float, list[float]]:
    """Return the scores of the full grid by weight factor, one a seed."""
    assert plan.grid is not None
    found: dict[float, list[float]] = defaultdict(list)
    for cell in plan.grid.cells:
        look = look_at(plan, store, cell.last, undefended_acc)
        found[cell.last.columns()["weight_factor"]].append(look.score)
    return dict(found)


def comparison_stage(plan: SearchPlan) -> dict[str, dict[str, Any]]:
    """Return the key under which the comparison's rows are kept, and what a plan says of it."""
    key = fingerprint({"comparison": plan.key})
    label = f"{plan.search.name}.comparison"
    return {key: {"kind": KIND, "label": label, "seed": plan.search.seed, "parent": None}}


def write_comparison(
    plan: SearchPlan, store: Store, compared: Comparison, scores: dict[float, list[float]]
) -> None:
    """Write the comparison and the grid's scores as rows of the search."""
    (key,) = comparison_stage(plan)
    columns = plan.template.looks[-1].columns()
    kept = ("model", "attack", "aux", "aux_size", "sample_seed", "seed", "task", "comparison")
    common = {**{name: columns[name] for name in kept}, "stage": key, "kind": KIND}
    common["defense"] = plan.search.defense.label()
    tables = [
        measurement_table([Measurement(n, v) for n, v in asdict(compared).items()], common),
        *(
            measurement_table(
                [Measurement(GRID_SCORE, score) for score in by_seed],
                {**common, "weight_factor": factor},
            )
            for factor, by_seed in scores.items()
        ),
    ]
    name = plan.search.name
    store.write_results(name, key, result_rows(pa.concat_tables(tables), name, [None]))


def _grid_seconds(plan: SearchPlan, store: Store) -> float:
    assert plan.grid is not None
    first = [cell for cell in plan.grid.cells if cell.last.seed == plan.grid.cells[0].last.seed]
    stages = {stage.key: stage for cell in first for stage in cell.stages[-2:]}
    return sum(float(store.manifest(stage.artifact)["wall_s"]) for stage in stages.values())
