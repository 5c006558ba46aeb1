"""`recipe-ray plan FILE --cluster FILE`: a forecast of time and money, as a table or as JSON."""

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from recipe_ray.cli.display import duration
from recipe_ray.experiment.cluster_spec import load_cluster
from recipe_ray.experiment.estimate import stage_seconds
from recipe_ray.experiment.forecast import Comparison, Forecast, compare_clusters
from recipe_ray.experiment.plan import Plan
from recipe_ray.stages.store import Store

ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        metavar="FILE",
        help="Cluster file (YAML): forecast time and money there, run nothing.",
    ),
]
_HEADER = f"{'nodes':>7} {'time':>10} {'CPU h':>9} {'GPU h':>9} {'money':>9} {'in use':>7}"


def show_forecast(
    plan: Plan, file: Path, store: Store | None, done: Collection[str], *, as_json: bool
) -> None:
    """Print what the plan would take on the cluster that the file describes."""
    cluster = load_cluster(file)
    compared = compare_clusters(plan, cluster, stage_seconds(plan, cluster, store, done), done)
    if as_json:
        typer.echo(json.dumps(_record(plan, compared), indent=1))
        return
    name = cluster.nodes[0].name
    typer.secho(f"{plan.name} on {file}", bold=True)
    typer.echo(f"{len(plan.stages.keys() - set(done))} stages to do\n{_HEADER}")
    typer.echo(_line(compared.described, ""))
    typer.echo(f"with other numbers of {name!r}:\n{_HEADER}")
    for found in compared.by_nodes:
        typer.echo(_line(found, "*" if found is compared.recommended else ""))
    typer.echo("* recommended: the fastest of those within 10 % of the cheapest;")
    typer.echo("  without prices, the fewest nodes within 10 % of the fastest")


def _line(found: Forecast, mark: str) -> str:
    used = f"{found.cpu_hours:>9.2f} {found.gpu_hours:>9.2f} {found.money:>9.2f}"
    share = f"{100 * found.utilisation:>5.0f} %"
    return f"{mark:>2}{found.nodes:>5} {duration(found.makespan_s):>10} {used} {share}"


def _record(plan: Plan, compared: Comparison) -> dict[str, object]:
    return {
        "experiment": plan.name,
        "described": asdict(compared.described),
        "by_nodes": [asdict(found) for found in compared.by_nodes],
        "recommended_nodes": compared.recommended.nodes,
    }
