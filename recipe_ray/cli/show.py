"""Commands that look: list and status. They start no Ray and load no model."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.registry import Registry
from recipe_ray.cli.options import DEFAULT_STORE, JsonOption, StoreOption
from recipe_ray.data.corpus import CORPORA
from recipe_ray.defenses.defense import DEFENSES
from recipe_ray.experiment.leftovers import prune_checkpoints, stale_checkpoints
from recipe_ray.models.family import MODELS
from recipe_ray.stages.store import Store
from recipe_ray.tasks.task import TASKS

REGISTRIES: dict[str, Registry[Any]] = {
    "attacks": ATTACKS,
    "defenses": DEFENSES,
    "models": MODELS,
    "corpora": CORPORA,
    "tasks": TASKS,
}
# a running stage writes a note every few seconds; older ones belong to something that was killed
STALE_S = 60.0


def list_command(
    kind: Annotated[str | None, typer.Argument(help="One of: " + ", ".join(REGISTRIES))] = None,
    json_: JsonOption = False,
) -> None:
    """List what an experiment file can name, with every field and its default."""
    if kind is not None and kind not in REGISTRIES:
        raise SpecError(unknown("kind", kind, REGISTRIES))
    found = {
        name: {plugin: _described(registry.get(plugin)) for plugin in registry}
        for name, registry in REGISTRIES.items()
        if kind in (None, name)
    }
    if json_:
        typer.echo(json.dumps(found, indent=1))
        return
    for name, plugins in found.items():
        typer.secho(name, bold=True)
        for plugin, about in plugins.items():
            typer.echo(f"  {plugin:<16} {about['summary']}")
            for field, value in about["fields"].items() if kind is not None else ():
                typer.echo(f"      {field:<20} {value['default']}  {value['description']}")
    if kind is None:
        typer.echo("recipe-ray list KIND shows the fields of each")


PruneOption = Annotated[
    bool, typer.Option("--prune", help="Delete checkpoints that nothing will resume from.")
]


def status_command(
    store: StoreOption = DEFAULT_STORE, json_: JsonOption = False, prune: PruneOption = False
) -> None:
    """Show what is done, running and failed in a store, and why."""
    opened = Store.open(_existing(store))
    status = _status(opened)
    alive = {note["key"] for note in status["running"] if note["fresh"]}
    stale = prune_checkpoints(opened, alive) if prune else stale_checkpoints(opened, alive)
    status["stale_checkpoints"] = {"count": len(stale), "bytes": sum(stale.values())}
    if json_:
        typer.echo(json.dumps(status, indent=1))
        return
    for experiment in status["experiments"]:
        typer.secho(
            f"{experiment['name']}: {experiment['cells_done']} of {experiment['cells']} cells, "
            f"{experiment['stages_done']} of {experiment['stages']} stages done",
            bold=True,
        )
    for note in status["running"]:
        state = "running" if note["fresh"] else "stopped without an end"
        typer.echo(
            f"  {state}: {note['kind']} {note['label']}: {note['phase']} "
            f"{note['step']}/{note['num_steps']}"
        )
    for note in status["failed"]:
        typer.secho(f"  failed: {note['kind']} {note['label']}-{note['key']}", fg="red")
        typer.echo(f"    {note['error']}: {note['message']}")
    if stale:
        size = f"{len(stale)} checkpoints ({sum(stale.values()) / 1e6:.1f} MB)"
        again = "deleted" if prune else "nothing will resume from them; --prune deletes them"
        typer.echo(f"  {size}: {again}")


def _existing(store: str) -> str:
    # to look at a store must not make one
    if "://" not in store and not Path(store).is_dir():
        raise SpecError(f"no store at {store}; give the folder or URI that --store was given")
    return store


def _described(plugin: Any) -> dict[str, Any]:
    schema = plugin.model_json_schema()
    fields = {
        name: {
            "default": _default(info),
            "description": info.description or "",
            "type": schema["properties"].get(name, {}).get("type", "see the documentation"),
        }
        for name, info in plugin.model_fields.items()
    }
    summary = (plugin.__doc__ or "").strip().splitlines()[0]
    return {"summary": summary, "version": plugin.version, "fields": fields}


def _default(info: Any) -> Any:
    if info.is_required():
        return "(required)"
    dumped = info.default
    return dumped.model_dump(mode="json") if hasattr(dumped, "model_dump") else dumped


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
    running = [
        {"key": key, "fresh": _age_s(note) < STALE_S, **note}
        for key, note in store.progress().items()
        if key not in done
    ]
    failed = [
        {"key": key, **{k: v for k, v in note.items() if k != "traceback"}}
        for key, note in store.failures().items()
    ]
    return {"experiments": experiments, "running": running, "failed": failed}


def _age_s(note: dict[str, Any]) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(note["time"])).total_seconds()
