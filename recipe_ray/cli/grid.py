"""Commands over an experiment file: sweep, plan (also the forecast for a cluster), debug."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipe_ray.api.experiments import planned, run_cell, swept
from recipe_ray.api.places import data_locations
from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.paths import existing_path, local_path
from recipe_ray.cli.display import Display, duration, told_if_slow
from recipe_ray.cli.exits import FAILED
from recipe_ray.cli.options import (
    DEFAULT_STORE,
    AddressOption,
    DataOption,
    ExperimentFile,
    JsonOption,
    QuietOption,
    SetOption,
    StoreOption,
    VerboseOption,
    set_up_logging,
)

if TYPE_CHECKING:
    from recipe_ray.experiment.plan import Cell, Plan
    from recipe_ray.schedule.forecast import Comparison, Forecast
    from recipe_ray.store.store import Store

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
    from recipe_ray.schedule.durations import stage_seconds
    from recipe_ray.schedule.forecast import compare_clusters
    from recipe_ray.schedule.resources import load_cluster

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


LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first N cells of the grid.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="DDP workers of every stage that makes a PTM."),
]
TrackOption = Annotated[
    list[str] | None,
    typer.Option("--track", help="Show finished stages in mlflow or wandb; may be given often."),
]


def sweep_command(
    file: ExperimentFile,
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    set_: SetOption = None,
    track: TrackOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run every stage of an experiment that the store lacks, on this machine or a Ray cluster."""
    from recipe_ray.cli.trackers import Tracking, open_trackers
    from recipe_ray.store.store import Store

    set_up_logging(verbose)
    plan = _plan(file, data, (*(set_ or ()), *_worker_changes(workers)), limit, quiet=quiet)
    if dry_run:
        _print_plan(plan, _summary(plan, store))
        return
    opened = Store.open(store)
    with (
        Tracking(open_trackers(track or (), plan.name), opened) as tracking,
        Display(len(plan.stages), quiet=quiet, verbose=verbose) as display,
    ):
        display.also(tracking.on_event)
        outcome = swept(plan, opened, data_locations(data), address, display)
    display.close(outcome, store)
    if outcome.failed:
        raise typer.Exit(FAILED)


def plan_command(
    file: ExperimentFile,
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    limit: LimitOption = None,
    set_: SetOption = None,
    cluster: ClusterOption = None,
    json_: JsonOption = False,
) -> None:
    """Show cells, distinct stages by kind, what the store already has, and the time left.

    With --cluster, show instead what the rest would take on a cluster that a file describes.
    """
    from recipe_ray.experiment.collect import plan_record

    plan = _plan(file, data, tuple(set_ or ()), limit)
    if cluster is not None:
        opened = _opened(store)
        done = opened.committed() if opened is not None else ()
        described = existing_path(cluster, "--cluster", "a cluster file (YAML)", "file")
        show_forecast(plan, described, opened, done, as_json=json_)
        return
    summary = _summary(plan, store)
    if json_:
        typer.echo(json.dumps({**plan_record(plan), "summary": summary}, indent=1))
    else:
        _print_plan(plan, summary)


def debug_command(
    file: ExperimentFile,
    cell: Annotated[str, typer.Option("--cell", help="Id of the cell, as `plan` shows it.")],
    store: StoreOption = DEFAULT_STORE,
    data: DataOption = None,
    set_: SetOption = None,
    verbose: VerboseOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run one cell in this process, without Ray: breakpoints work, numbers are the sweep's."""
    from recipe_ray.store.store import Store

    set_up_logging(verbose)
    plan = _plan(file, data, tuple(set_ or ()), None, quiet=quiet)
    chosen = _cell(plan, cell)
    opened = Store.open(store)
    with Display(len(chosen.stages), quiet=quiet, verbose=verbose) as display:
        run_cell(plan, chosen, opened, data_locations(data), display)
    shown = chosen.last.shown
    units = {one.metric: one.unit for one in shown.columns} if shown is not None else {}
    for row in opened.rows(chosen.last.artifact).to_pylist():
        if row["metric"] in units:
            share = units[row["metric"]] == "percent"
            number = f"{100 * row['value']:.2f} %" if share else f"{row['value']:g}"
            typer.echo(f"{row['metric']:<5} {number}")


def _plan(
    file: str, data: str | None, changes: tuple[str, ...], limit: int | None, *, quiet: bool = False
) -> Plan:
    with told_if_slow(f"reading {file}, its models and the checksums of its data", quiet=quiet):
        return planned(file, changes, data, limit)


def _worker_changes(workers: int | None) -> list[str]:
    from recipe_ray.stages.stage import makers_of_ptms

    kinds = makers_of_ptms() if workers is not None else ()
    return [f"launch.workers.{kind}={workers}" for kind in kinds]


def _summary(plan: Plan, store: str) -> dict[str, Any]:
    from recipe_ray.experiment.plan import plan_summary
    from recipe_ray.schedule.durations import time_left

    opened = _opened(store)
    done = set(opened.committed()) if opened is not None else set()
    left = asdict(time_left(plan, opened, done)) if opened is not None else None
    return {**plan_summary(plan, done), "time_left": left}


def _opened(store: str) -> Store | None:
    from recipe_ray.store.remote import is_remote
    from recipe_ray.store.store import Store

    # planning must not make a store
    if is_remote(store):
        return Store.open(store)
    path = local_path(store, "--store", "a folder or URI")
    return Store.open(path) if path.exists() else None


def _print_plan(plan: Plan, summary: dict[str, Any]) -> None:
    typer.secho(plan.name, bold=True)
    if plan.description:
        typer.echo(f"  {plan.description.strip()}")
    typer.echo(f"{summary['cells']} cells, {summary['cells_done']} done")
    for cell in plan.cells:
        typer.echo(f"  {cell.id}  {cell.title}")
    typer.echo(f"{len(plan.stages)} distinct stages")
    kinds = {kind: counts for kind, counts in summary["kinds"].items() if counts["stages"]}
    wide = max(map(len, kinds), default=0)
    for kind, counts in kinds.items():
        typer.echo(f"  {kind:<{wide}} {counts['stages']:>5}, {counts['done']} in the store")
    left = summary["time_left"]
    if left is None or (left["unknown_stages"] and not left["known_s"]):
        typer.echo("time left: unknown, no stage of this kind has been measured in this store")
        return
    rest = left["unknown_stages"]
    more = f", and {rest} stages of unknown duration" if rest else ""
    typer.echo(f"time left, one stage after the other: about {duration(left['known_s'])}{more}")


def _cell(plan: Plan, wanted: str) -> Cell:
    if not wanted:
        raise SpecError("--cell: it is empty; give the id or title that `recipe-ray plan` shows")
    found = [cell for cell in plan.cells if cell.id.startswith(wanted) or cell.title == wanted]
    if len(found) != 1:
        problem = "more than one cell matches" if found else ""
        names = [f"{cell.id} ({cell.title})" for cell in found or plan.cells]
        raise SpecError(f"--cell {wanted}: " + (problem or unknown("cell", wanted, names)))
    return found[0]
