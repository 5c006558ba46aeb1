"""The command that lists what an experiment file can name; it loads no model."""

import json
from typing import Annotated, Any

import typer

from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.registry import Registry
from recipe_ray.cli.options import JsonOption
from recipe_ray.data.corpus import CORPORA
from recipe_ray.defenses.defense import DEFENSES
from recipe_ray.models.family import MODELS
from recipe_ray.tasks.task import TASKS

REGISTRIES: dict[str, Registry[Any]] = {
    "attacks": ATTACKS,
    "defenses": DEFENSES,
    "models": MODELS,
    "corpora": CORPORA,
    "tasks": TASKS,
}


def list_command(
    kind: Annotated[str | None, typer.Argument(help="One of: " + ", ".join(REGISTRIES))] = None,
    json_: JsonOption = False,
) -> None:
    """List what an experiment file can name, with every field and its default."""
    if kind is not None and kind not in REGISTRIES:
        of = [name for name, registry in REGISTRIES.items() if kind in registry]
        hint = "".join(f"; `recipe-ray list {name}` shows {kind!r}" for name in of)
        raise SpecError(unknown("kind", kind, REGISTRIES) + hint)
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
    return {"summary": summary, "version": _version(plugin), "fields": fields}


def _version(plugin: Any) -> Any:
    try:
        return plugin.meaning()["version"]
    except SpecError:
        return None  # it declares none, and has no source to be known by


def _default(info: Any) -> Any:
    if info.is_required():
        return "(required)"
    dumped = info.default
    return dumped.model_dump(mode="json") if hasattr(dumped, "model_dump") else dumped
