"""`python -m benchmarks.full_grid FILE`: what a search spends and finds, beside a full grid.

    python -m benchmarks.full_grid experiments/mini/asha_weight_factor.yaml --data DATA \\
        --store runs/mini --weight-factors 0.01 0.03 0.1 0.3 1 3 10 --seeds 0 1 2

The search runs first, as far as the store lacks it; then the full grid of the weight factors, each
purified for all epochs and fine-tuned as a look is. Its rows are those of the experiment
`NAME.grid`. It is in none of the groups: `make bench` would take half an hour longer.

The rule. The grid's region is every weight factor whose score (mean over seeds) is within `spread`
of the grid's best, where the spread is how far the seeds' scores at that best lie apart (0 with one
seed). The search agrees if its best weight factor is within a factor of 2 of the region, and its
score is not lower than the grid's best by more than the spread.
"""

import argparse
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.contenders import Figure
from recipe_ray.base.errors import UserError
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.search import search
from recipe_ray.distributed.sweep import sweep
from recipe_ray.experiment.files import load_search
from recipe_ray.experiment.plan import Plan
from recipe_ray.experiment.search import Settings
from recipe_ray.experiment.search_plan import (
    Record,
    SearchPlan,
    Undefended,
    look_at,
    make_search_plan,
    part_plan,
)
from recipe_ray.store.store import Store

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


def grid_plan(
    plan: SearchPlan, weight_factors: list[float], seeds: list[int], locations: Locations
) -> Plan:
    """Return the full grid of the weight factors, fine-tuned as looks are."""
    points = (Settings.of({"weight_factor": one}) for one in weight_factors)
    block = {
        "attacks": (plan.search.attack,),
        "defenses": tuple(point.put_into(plan.search) for point in points),
        "tasks": (plan.search.quick.task,),
        "seeds": tuple(seeds),
    }
    return part_plan(plan.search, "grid", [block], locations)


def beside_full_grid(
    plan: SearchPlan, grid: Plan, store: Store, locations: Locations, address: str | None = None
) -> Comparison:
    """Run what the store lacks of the search and of the grid, and compare them.

    Raises UserError if the search ends in one, or a part of the two fails.
    """
    failed = search(plan, store, locations, address=address).failed
    failed |= sweep(grid, store, locations, address=address).failed
    if failed:
        raise UserError("\n".join(failed.values()))
    undefended = plan.undefended_in(store)
    record = Record.load(plan, store, undefended)
    scores = grid_scores(plan, grid, store, undefended)
    return compare(plan, record, scores, grid_seconds(grid, store))


def grid_scores(
    plan: SearchPlan, grid: Plan, store: Store, undefended: Undefended
) -> dict[float, list[float]]:
    """Return the scores of the full grid by weight factor, one a seed."""
    found: dict[float, list[float]] = defaultdict(list)
    for cell in grid.cells:
        look = look_at(plan, store, cell.last, undefended)
        found[cell.last.columns()["weight_factor"]].append(look.score)
    return dict(found)


def grid_seconds(grid: Plan, store: Store) -> float:
    """Return the seconds of the grid's purifications and fine-tunings of one seed."""
    first = [cell for cell in grid.cells if cell.last.seed == grid.cells[0].last.seed]
    stages = {stage.key: stage for cell in first for stage in cell.stages[-2:]}
    return sum(float(store.manifest(stage.artifact)["wall_s"]) for stage in stages.values())


def compare(
    plan: SearchPlan, record: Record, scores: dict[float, list[float]], grid_s: float
) -> Comparison:
    """Return the comparison with a grid's scores by weight factor; a candidate must have a look."""
    best = record.ranked()[0]
    assert best.last is not None
    looks = [look for course in record.courses.values() for look in course.looks.values()]
    search_s = sum(look.purify_s + look.look_s for look in looks)
    grid_epochs = len(scores) * plan.search.epochs
    means = {factor: fmean(by_seed) for factor, by_seed in scores.items()}
    top = max(means, key=lambda factor: means[factor])
    spread = max(scores[top]) - min(scores[top])
    found = best.candidate.settings.weight_factor
    region = [factor for factor, mean in means.items() if mean >= means[top] - spread]
    near = any(1 / REGION_FACTOR <= found / factor <= REGION_FACTOR for factor in region)
    return Comparison(
        search_epochs=len(looks),
        search_finetunings=sum(look.acc is not None for look in looks),
        search_s=search_s,
        all_epochs=len(record.courses) * plan.search.epochs,
        grid_epochs=grid_epochs,
        grid_finetunings=len(scores),
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


def as_figures(compared: Comparison) -> list[Figure]:
    """Return the comparison as figures."""
    units = {"_epochs": "epochs", "_finetunings": "fine-tunings", "_s": "s", "_score": "of 1"}
    shares = {"epochs_saved": "of the grid's", "seconds_saved": "of the grid's"}
    found = []
    for name, value in asdict(compared).items():
        fitting = (unit for end, unit in units.items() if name.endswith(end))
        found.append(Figure(f"full_grid_{name}", [value], shares.get(name, next(fitting, ""))))
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print the comparison, one line a figure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_grid")
    parser.add_argument("file", type=Path, help="search file (YAML)")
    parser.add_argument("--weight-factors", type=float, nargs="+", required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--store", default="runs")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--address", help="of a Ray cluster; default: a local Ray")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    given = parser.parse_args(arguments)
    try:
        locations = Locations.from_environment(given.data)
        plan = make_search_plan(load_search(given.file, tuple(given.set)), locations)
        grid = grid_plan(plan, given.weight_factors, given.seeds, locations)
        store = Store.open(given.store)
        compared = beside_full_grid(plan, grid, store, locations, given.address)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    for figure in as_figures(compared):
        sys.stdout.write(f"{figure}\n")


if __name__ == "__main__":
    main()
