"""`recipe-ray list`: what files of experiments can name, and what each kind of file may say.

Plugins are listed without what computes (`tests/test_start.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.printable import in_a_row
from recipe_ray.cli.options import KINDS, JsonOption, registries

FILES = ("experiment", "search", "catalog", "cluster")


def list_command(
    kind: Annotated[
        str | None,
        typer.Argument(
            help="One of: " + ", ".join((*KINDS, *FILES)),
            autocompletion=lambda: [*KINDS, *FILES],
        ),
    ] = None,
    json_: JsonOption = False,
    schema: Annotated[
        bool,
        typer.Option("--schema", help=f"Print the JSON Schema of a file: {', '.join(FILES)}."),
    ] = False,
) -> None:
    """List what an experiment file can name, or what a kind of file may say, with defaults."""
    if schema and kind not in FILES:
        raise SpecError(f"--schema: {unknown('kind of file', kind or '', FILES)}")
    if kind in FILES:
        _list_file(kind, json_=json_ or schema)
        return
    known = registries()
    if kind is not None and kind not in KINDS:
        of = [name for name, registry in known.items() if kind in registry]
        hint = "".join(f"; `recipe-ray list {name}` shows {kind!r}" for name in of)
        raise SpecError(unknown("kind", kind, (*KINDS, *FILES)) + hint)
    found = {
        name: {plugin: registry.get(plugin) for plugin in registry}
        for name, registry in known.items()
        if kind in (None, name)
    }
    if json_:
        described = {
            name: {plugin: _described(cls) for plugin, cls in plugins.items()}
            for name, plugins in found.items()
        }
        typer.echo(json.dumps(described, indent=1))
        return
    for name, plugins in found.items():
        typer.secho(name, bold=True)
        for plugin, cls in plugins.items():
            typer.echo(f"  {plugin:<16} {_summary(cls)}")
            for field, info in cls.model_fields.items() if kind is not None else ():
                for line in _field_lines(field, info):
                    typer.echo(f"      {line}")
    if kind is None:
        typer.echo("recipe-ray list KIND shows the fields of each")
        typer.echo(f"recipe-ray list {' | '.join(FILES)} shows what such a file may say")


def _list_file(kind: str, *, json_: bool) -> None:
    """Print every field of a kind of file with type, default and meaning, or the schema."""
    from recipe_ray.cli.schema import file_schema, in_words

    whole = file_schema(kind)
    if json_:
        typer.echo(json.dumps(whole, indent=1, ensure_ascii=False))
        return
    parts = {f"{kind} file": whole, **_entries(whole), **whole["$defs"]}
    for name, part in parts.items():
        plugin = "." in name or ("anyOf" in part and "properties" not in part)
        if plugin or not part.get("properties"):
            continue  # `recipe-ray list attacks` and the like show these
        typer.secho(name, bold=True)
        for field, about in part["properties"].items():
            own = whole["$defs"].get(str(about.get("$ref", "")).rpartition("/")[2], {})
            default = "" if own.get("properties") else _short(about.get("default", ""))
            given = f" = {default}" if default else ""  # a part's own are shown with it
            needed = " (required)" if field in part.get("required", ()) else ""
            line = f"  {field:<24} {in_words(about)}{given}{needed}  {about.get('description', '')}"
            typer.echo(line.rstrip())


def _entries(whole: dict[str, Any]) -> dict[str, Any]:
    """Return what an entry of a catalogue may say, by section and kind."""
    return {
        f"{section}, kind {case['if']['properties']['kind']['const']}": case["then"]
        for section, about in whole["properties"].items()
        for case in about.get("additionalProperties", {}).get("allOf", ())
    }


def _field_lines(name: str, info: Any) -> Iterator[str]:
    """Yield a field with its default, and those of a spec in it under the names for --set."""
    from recipe_ray.base.spec import Component, Spec

    default, about = info.default, info.description or ""
    if isinstance(default, Component):
        yield f"{name:<24} {_short(default.label())}  {about}".rstrip()
        return
    if not isinstance(default, Spec):
        yield f"{name:<24} {_short(_default(info))}  {about}".rstrip()
        return
    yield f"{name:<24} {about}".rstrip()
    for inner, inner_info in type(default).model_fields.items():
        value = _short(getattr(default, inner))
        yield f"  {f'{name}.{inner}':<22} {value}  {inner_info.description or ''}".rstrip()


def _short(value: Any) -> str:
    """Return a default as YAML has it, in a line of at most `_LONGEST` characters."""
    from recipe_ray.base.spec import Component, Spec

    if isinstance(value, Component):
        value = value.label()
    if isinstance(value, dict) and "name" in value:
        value = value["name"]  # of a component in a schema
    if isinstance(value, (list, tuple)):
        return in_a_row(f"[{', '.join(map(_short, value))}]", _LONGEST)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Spec):
        value = value.model_dump(mode="json", exclude_defaults=True)
    return in_a_row(f"{value:g}" if isinstance(value, float) else str(value), _LONGEST)


_LONGEST = 60


def _described(plugin: Any) -> dict[str, Any]:
    fields = {
        name: {
            "default": _default(info),
            "description": info.description or "",
            "type": _type(info.annotation),
        }
        for name, info in plugin.model_fields.items()
    }
    return {"summary": _summary(plugin), "version": _version(plugin), "fields": fields}


def _type(annotation: Any) -> str:
    """Return JSON's word for a plain type; its whole schema would take pydantic half a second."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        kinds = {_type(type(one)) for one in arguments}
        return kinds.pop() if len(kinds) == 1 else _OTHER
    return _TYPES.get(origin or annotation, _OTHER)


_OTHER = "see the documentation"
_TYPES: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    tuple: "array",
    list: "array",
    dict: "object",
}


def _summary(plugin: Any) -> str:
    return str(plugin.__doc__ or "").strip().splitlines()[0]


def _version(plugin: Any) -> Any:
    try:
        return plugin.meaning()["version"]
    except SpecError:
        return None  # it declares no version, and has no source to identify it


def _default(info: Any) -> Any:
    return "(required)" if info.is_required() else _plain(info.default)


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value
