"""`recipe-ray store verify | du | gc | export`: is a store whole, what takes space, what can go.

Nothing here starts Ray or computes. Only `gc --yes` deletes, and `export` writes elsewhere.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from recipe_ray.api.places import output_folder, present_store
from recipe_ray.base.printable import in_a_row, printable
from recipe_ray.cli.display import size
from recipe_ray.cli.exits import FAILED
from recipe_ray.cli.options import (
    DEFAULT_STORE,
    JsonOption,
    OutOption,
    StoreOption,
)

if TYPE_CHECKING:
    from recipe_ray.store.upkeep import Garbage, Usage

store_group = typer.Typer(
    name="store",
    help="Check a store, see what takes space, delete what nothing needs, copy an experiment.",
    no_args_is_help=True,
    add_completion=False,
)

_LINE_EVERY_S = 30.0
_DAY_S = 24 * 3600.0


class _Telling:
    """Says on standard error how far a long command is: a bar, or a line every half minute."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        console = Console(stderr=True, highlight=False, quiet=quiet)
        self._what, self._console = what, console
        self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return self._hear

    def __exit__(self, *ended: object) -> None:
        self._bar.stop()

    def _hear(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said > _LINE_EVERY_S:
            self._said = now
            self._console.print(f"{self._what}: {done} of {total}")


@store_group.command("verify")
def verify_command(store: StoreOption = DEFAULT_STORE, json_: JsonOption = False) -> None:
    """Check every artifact, row and plan by its checksum; exit code 1 if something is damaged."""
    from recipe_ray.store.verify import verify_store

    opened = present_store(store, "--store")
    with _Telling("checked", quiet=json_) as telling:
        found = verify_store(opened, telling)
    if json_:
        whole = {"checked": dict(found.checked), "damaged": found.damaged}
        typer.echo(json.dumps(whole, indent=1))
    else:
        for problem in found.damaged:
            typer.secho(f"damaged: {in_a_row(problem, 1000)}", fg="red")
        seen = ", ".join(f"{count} {sort}" for sort, count in sorted(found.checked.items()))
        typer.echo(f"checked: {seen or 'nothing, the store is empty'}")
        typer.echo(_verdict(len(found.damaged)))
    if found.damaged:
        raise typer.Exit(FAILED)


def _verdict(damaged: int) -> str:
    if not damaged:
        return "nothing is damaged"
    things = "1 thing is" if damaged == 1 else f"{damaged} things are"
    return (
        f"{things} damaged: delete what is named and start the same sweep or search again; it does "
        "only what is missing then, and nothing else is lost"
    )


@store_group.command("du")
def du_command(store: StoreOption = DEFAULT_STORE, json_: JsonOption = False) -> None:
    """Show what takes how much space: by kind of artifact, by experiment, and the rest."""
    from recipe_ray.store.upkeep import usage

    found = usage(present_store(store, "--store"))
    for problem in found.problems:
        said = f"not known what is named by it: {in_a_row(str(problem), 1000)}"
        typer.secho(said, fg="yellow", err=True)
    typer.echo(json.dumps(_usage_json(found), indent=1) if json_ else _usage_text(found))


def _usage_json(found: Usage) -> dict[str, Any]:
    experiments = {
        name: {"own": own, "shared": found.shared_of[name]} for name, own in found.own.items()
    }
    return {
        "total": found.total,
        "artifacts": dict(found.kinds),
        "folders": dict(found.folders),
        "experiments": experiments,
        "shared_by_several": found.shared,
        "named_by_none": found.unnamed,
        "damaged": [str(problem) for problem in found.problems],
    }


def _usage_text(found: Usage) -> str:
    lines = [f"{size(found.total)} in all", "artifacts by kind", *_sorted(found.kinds)]
    lines += ["other folders", *_sorted(found.folders)]
    lines.append("artifacts by experiment")
    for name, own in sorted(found.own.items(), key=lambda pair: (-pair[1], pair[0])):
        shared = found.shared_of[name]
        more = f", and {size(shared)} that it shares with others" if shared else ""
        lines.append(f"{size(own):>10}  {in_a_row(name)}{more}")
    if found.shared:
        lines.append(f"{size(found.shared):>10}  (named by several experiments, counted once)")
    if found.unnamed:
        told = "(named by no plan; `recipe-ray store gc` lists them)"
        lines.append(f"{size(found.unnamed):>10}  {told}")
    return "\n".join(lines)


def _sorted(sizes: Counter[str]) -> Iterable[str]:
    if not sizes:
        yield f"{'-':>10}"
    for name, count in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0])):
        yield f"{size(count):>10}  {in_a_row(name)}"


YesOption = Annotated[bool, typer.Option("--yes", help="Delete; without it nothing is deleted.")]
KeepOption = Annotated[
    float,
    typer.Option("--keep-days", min=0, max=36500, help="Leave what changed in the last N days."),
]


@store_group.command("gc")
def gc_command(
    store: StoreOption = DEFAULT_STORE,
    yes: YesOption = False,
    keep_days: KeepOption = 0.0,
    json_: JsonOption = False,
) -> None:
    """List what no plan in the store needs, with sizes; --yes deletes it. Rows always stay."""
    from recipe_ray.store.upkeep import clear, garbage

    opened, keep_s = present_store(store, "--store"), keep_days * _DAY_S
    found = clear(opened, keep_s, told=_told()) if yes else garbage(opened, keep_s)
    if json_:
        items = [{"what": one.what, "path": one.path, "bytes": one.bytes} for one in found]
        total = sum(one.bytes for one in found)
        typer.echo(json.dumps({"deleted": yes, "bytes": total, "items": items}, indent=1))
        return
    _print_garbage(found)
    said = f"{len(found)} things, {size(sum(one.bytes for one in found))}"
    if not found:
        typer.echo("there is nothing to delete")
    elif yes:
        typer.echo(f"deleted: {said}")
    else:
        typer.echo(f"{said}. Nothing was deleted: this was a dry run; --yes deletes them")


def _print_garbage(found: list[Garbage]) -> None:
    from recipe_ray.store.upkeep import WHAT

    now = time.time()
    for what, title in WHAT.items():
        some = sorted((one for one in found if one.what == what), key=lambda one: -one.bytes)
        if some:
            typer.secho(f"{title}: {size(sum(one.bytes for one in some))}", bold=True)
        for one in some:
            days = max(now - one.changed, 0.0) / _DAY_S
            typer.echo(f"{size(one.bytes):>10}  {days:4.0f} days old  {printable(one.path)}")


def _told() -> Callable[[], dict[str, Any]]:
    """Return what `status` shows of a `gc`: the fields of a driver's note."""
    about = {
        "experiment": "store gc",
        "host": platform.node(),
        "pid": os.getpid(),
        "started": datetime.now(UTC).isoformat(),
        "counted": "stages",
        "states": dict.fromkeys(("waiting", "running", "done", "failed"), 0),
        "running": [],
        "left_s": None,
        "part": "deleting",
    }
    return lambda: about


ExperimentArgument = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="Its name, as `recipe-ray status` shows it.")
]
ModelsOption = Annotated[
    bool, typer.Option("--with-models", help="Copy the models, too: a store that is whole.")
]


@store_group.command("export")
def export_command(
    experiment: ExperimentArgument,
    out: OutOption,
    store: StoreOption = DEFAULT_STORE,
    with_models: ModelsOption = False,
) -> None:
    """Copy an experiment into a new store: plan, rows, manifests, scans, logs; models if asked."""
    from recipe_ray.stages.run import LOG_FILE
    from recipe_ray.stages.scan import RESULT
    from recipe_ray.store.export import export_experiment

    target = output_folder(out, "--out")
    opened = present_store(store, "--store")
    kept = None if with_models else (LOG_FILE, RESULT)
    with _Telling("copied", quiet=False) as telling:
        done = export_experiment(opened, experiment, target, kept, telling)
    more = f"; {done.missing} of its plan are not in the store yet" if done.missing else ""
    typer.echo(f"{done.stages} stages of {in_a_row(experiment)} copied to {target}{more}")
    if not with_models:
        typer.echo("without models: reports work, but a new stage that needs one would say so")
