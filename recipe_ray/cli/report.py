"""The commands that show what came of experiments, and what an experiment file can name.

They start no Ray and load no model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recipe_ray.api.experiments import recorded_at
from recipe_ray.api.places import output_file, output_folder
from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.base.printable import in_a_row
from recipe_ray.cli.options import (
    DEFAULT_STORE,
    JsonOption,
)

if TYPE_CHECKING:
    from recipe_ray.base.registry import Registry
    from recipe_ray.report.load import Recorded


def report_command(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A store, a folder that --export wrote, or a Parquet file of result rows.",
        ),
    ] = DEFAULT_STORE,
    experiment: Annotated[str | None, typer.Option(help="Only this experiment.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=VALUE,...",
            help="Only rows with these values, and the clean PTM's: --only defense=none,recipe.",
        ),
    ] = None,
    markdown_: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    json_: JsonOption = False,
    figures: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder for every figure as SVG, PNG and PDF (extra `figures`).",
        ),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="One page with all tables and figures, without network (extra `figures`).",
        ),
    ] = None,
    serve: Annotated[
        bool,
        typer.Option("--serve", help="Show the page of --html while a sweep runs, until Ctrl-C."),
    ] = False,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of --serve on 127.0.0.1; 0: a free one.")
    ] = 0,
    export_: Annotated[
        str | None,
        typer.Option(
            "--export", metavar="FOLDER", help="Folder to keep each experiment's plan and rows in."
        ),
    ] = None,
) -> None:
    """Show ACC, AASR and MASR of every cell, next to the clean PTM's and the paper's."""
    from recipe_ray.report.json_report import as_json
    from recipe_ray.report.load import export, store_at
    from recipe_ray.report.render import Terminal, markdown
    from recipe_ray.report.sections import sections

    pictured = None if figures is None else output_folder(figures, "--figures")
    paged = None if html is None else output_file(html, "--html")
    kept_in = None if export_ is None else output_folder(export_, "--export")
    found = _recorded(place, only)
    names = [one.experiment for one in found]
    if experiment is not None and experiment not in names:
        raise SpecError(f"{place}: " + unknown("experiment", experiment, names))
    if serve:
        _serve(place, experiment, only, port)
        return
    shown = sections(found, experiment)
    if json_:
        typer.echo(as_json(shown))
    else:
        drawn = [table for section in shown for table in section.tables()]
        if markdown_:
            typer.echo(markdown(drawn), nl=False)
        else:
            from rich.console import Console

            Console().print(Terminal(drawn))
    kept = [one for one in found if experiment in (None, one.experiment)]
    written: list[Path] = []
    if pictured is not None:
        from recipe_ray.report.figures import draw
        from recipe_ray.report.overview import overviews
        from recipe_ray.report.run_figures import trigger_pictures

        store = store_at(place)
        about = {one.experiment: one for one in overviews(kept, store)}
        grids = trigger_pictures(kept, store) if store is not None else []
        written += draw(shown, pictured, about, grids)
    if paged is not None:
        text = _page(place, experiment, only)
        paged.parent.mkdir(parents=True, exist_ok=True)
        paged.write_text(text, encoding="utf-8")
        written.append(paged)
    if kept_in is not None:
        written += export(kept, kept_in)
    for file in written:
        typer.echo(f"wrote {file}", err=True)


def _page(
    place: str, experiment: str | None, only: list[str] | None, refresh_s: int | None = None
) -> str:
    """Return the page of what is at a place now."""
    from recipe_ray.report.html import page
    from recipe_ray.report.load import store_at
    from recipe_ray.report.overview import overviews
    from recipe_ray.report.run_figures import trigger_pictures
    from recipe_ray.report.sections import sections

    found, store = _recorded(place, only), store_at(place)
    kept = [one for one in found if experiment in (None, one.experiment)]
    about = {one.experiment: one for one in overviews(kept, store)}
    grids = trigger_pictures(kept, store) if store is not None else []
    return page(sections(found, experiment), about, grids, refresh_s)


def _serve(place: str, experiment: str | None, only: list[str] | None, port: int) -> None:
    from recipe_ray.report.charts import require_library
    from recipe_ray.report.serve import REFRESH_S, PageServer

    require_library()
    with PageServer(lambda: _page(place, experiment, only, REFRESH_S), port) as server:
        typer.echo(f"{server.url} shows {place}, on this machine only; Ctrl-C ends it", err=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("no longer shown; a sweep that runs is not affected", err=True)


def _recorded(place: str, only: list[str] | None) -> list[Recorded]:
    from recipe_ray.report.load import narrowed

    found = recorded_at(place)
    for one in only or ():
        column, sign, values = one.partition("=")
        if not sign or not values:
            raise SpecError(f"--only {one}: write COLUMN=VALUE,..., e.g. defense=none,recipe")
        found = narrowed(found, column, values.split(","))
    return found


KINDS = ("attacks", "defenses", "models", "corpora", "tasks", "detectors")


def registries() -> dict[str, Registry[Any]]:
    """Return the registry of every kind of `KINDS`."""
    from recipe_ray.attacks.attack import ATTACKS
    from recipe_ray.data.corpus import CORPORA
    from recipe_ray.defenses.defense import DEFENSES
    from recipe_ray.detectors.detector import DETECTORS
    from recipe_ray.models.family import MODELS
    from recipe_ray.tasks.task import TASKS

    found = (ATTACKS, DEFENSES, MODELS, CORPORA, TASKS, DETECTORS)
    return dict(zip(KINDS, found, strict=True))


def list_command(
    kind: Annotated[str | None, typer.Argument(help="One of: " + ", ".join(KINDS))] = None,
    json_: JsonOption = False,
) -> None:
    """List what an experiment file can name, with every field and its default."""
    known = registries()
    if kind is not None and kind not in KINDS:
        of = [name for name, registry in known.items() if kind in registry]
        hint = "".join(f"; `recipe-ray list {name}` shows {kind!r}" for name in of)
        raise SpecError(unknown("kind", kind, KINDS) + hint)
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
    if isinstance(value, (list, tuple)):
        return in_a_row(f"[{', '.join(map(_short, value))}]", _LONGEST)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Spec):
        value = value.model_dump(mode="json", exclude_defaults=True)
    return in_a_row(f"{value:g}" if isinstance(value, float) else str(value), _LONGEST)


_LONGEST = 60


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
    return {"summary": _summary(plugin), "version": _version(plugin), "fields": fields}


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
