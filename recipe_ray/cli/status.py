"""`recipe-ray status`: what is done, running and failed in a store. It starts no Ray."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from recipe_ray.base.errors import SpecError
from recipe_ray.cli.display import duration
from recipe_ray.cli.live import is_alive, stall, watch
from recipe_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption, present_store
from recipe_ray.experiment.stale_checkpoints import prune_checkpoints, stale_checkpoints
from recipe_ray.stages.drivers import DriverNotes, stalled_s
from recipe_ray.stages.store import Store

WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Show what runs, again and again, until it ends.")
]
IntervalOption = Annotated[
    float, typer.Option("--interval", min=0.2, help="Seconds between two looks of --watch.")
]
PruneOption = Annotated[
    bool, typer.Option("--prune", help="Delete checkpoints that nothing will resume from.")
]


def status_command(
    store: StoreOption = DEFAULT_STORE,
    watch_: WatchOption = False,
    interval: IntervalOption = 2.0,
    prune: PruneOption = False,
    json_: JsonOption = False,
) -> None:
    """Show what is done, running and failed in a store, and why; --watch: while it runs."""
    if watch_ and json_:
        raise SpecError("--watch draws for people, --json prints once: give one of them")
    opened = present_store(store, "--store")
    if watch_ and not watch(opened, interval, Console(highlight=False)):
        typer.echo("nothing runs on this store now")
    status = _status(opened)
    alive = {note["key"] for note in status["running"] if note["fresh"]}
    stale = prune_checkpoints(opened, alive) if prune else stale_checkpoints(opened, alive)
    status["stale_checkpoints"] = {"count": len(stale), "bytes": sum(stale.values())}
    if json_:
        typer.echo(json.dumps(status, indent=1))
        return
    _print(status)
    if stale:
        size = f"{len(stale)} checkpoints ({sum(stale.values()) / 1e6:.1f} MB)"
        again = "deleted" if prune else "nothing will resume from them; --prune deletes them"
        typer.echo(f"  {size}: {again}")


def _print(status: dict[str, Any]) -> None:
    for experiment in status["experiments"]:
        typer.secho(
            f"{experiment['name']}: {experiment['cells_done']} of {experiment['cells']} cells, "
            f"{experiment['stages_done']} of {experiment['stages']} stages done",
            bold=True,
        )
    for driver in status["drivers"]:
        left_s = driver["left_s"]
        left = "" if left_s is None else f", about {duration(left_s)} to go"
        typer.echo(
            f"  {driver['experiment']} is driven by process {driver['pid']} on "
            f"{driver['host']}{left}"
        )
    if status["stalled_s"] is not None:
        typer.secho(f"  {stall(status['stalled_s'], status['drivers'])}", fg="yellow")
    for note in status["running"]:
        state = "running" if note["fresh"] else "stopped without an end"
        typer.echo(
            f"  {state}: {note['kind']} {note['label']}: {note['phase']} "
            f"{note['step']}/{note['num_steps']}"
        )
    for note in status["failed"]:
        typer.secho(f"  failed: {note['kind']} {note['label']}-{note['key']}", fg="red")
        typer.echo(f"    {note['error']}: {note['message']}")


def _status(store: Store) -> dict[str, Any]:
    done = set(store.committed())
    experiments = []
    for name in store.experiments():
        plan = store.plan(name)
        if plan is None:
            continue
        cells = [cell["stages"] for cell in plan["cells"]]
        experiments.append(
            {
                "name": name,
                "cells": len(cells),
                "cells_done": sum(set(stages) <= done for stages in cells),
                "stages": len(plan["stages"]),
                "stages_done": sum(key in done for key in plan["stages"]),
            }
        )
    drivers = DriverNotes(store).living()
    running = [
        {"key": key, "fresh": is_alive(key, note, drivers), **note}
        for key, note in store.progress().items()
        if key not in done
    ]
    failed = [
        {"key": key, **{k: v for k, v in note.items() if k != "traceback"}}
        for key, note in store.failures().items()
    ]
    return {
        "experiments": experiments,
        "drivers": drivers,
        "stalled_s": stalled_s(drivers),
        "running": running,
        "failed": failed,
    }
