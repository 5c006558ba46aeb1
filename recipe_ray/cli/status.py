"""`recipe-ray status`: what is done, running and failed in a store, once or live. It starts no Ray.

The live view reads only the store, so it works from any terminal and host. One refresh costs two
listings, one small file per driver and one per running stage. Failures are read only if a driver
says that there are more of them. Committed artifacts are not listed at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from recipe_ray.api.places import present_store
from recipe_ray.base.errors import DamagedError, SpecError
from recipe_ray.base.printable import printable
from recipe_ray.cli.display import duration
from recipe_ray.cli.options import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
)
from recipe_ray.learn.progress import Throughput

if TYPE_CHECKING:
    from recipe_ray.store.store import Store

_BAR_WIDTH = 16
_FAILURES_SHOWN = 5


@dataclass
class View:
    """What was last read from a store."""

    store: Store
    drivers: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    _failed: int = 0
    _begun: dict[str, float] = field(default_factory=dict)

    def look(self) -> None:
        """Read the notes of drivers and running stages again, and failures if some are new."""
        from recipe_ray.schedule.sweep_progress import DriverNotes

        self.drivers = DriverNotes(self.store).living()
        self.notes = {
            key: note
            for key, note in self.store.progress().items()
            if is_alive(key, note, self.drivers)
        }
        for stage in self.running():
            if stage["key"] in self.notes:
                self._begun[stage["key"]] = stage["running_s"]
        failed = sum(driver["states"]["failed"] for driver in self.drivers)
        if failed > self._failed:
            self.failures = self.store.failures()
        self._failed = failed

    def running(self) -> Iterator[dict[str, Any]]:
        """Yield what drivers say of the stages that they run."""
        for driver in self.drivers:
            yield from driver["running"]

    def is_ending(self, stage: dict[str, Any]) -> bool:
        """Tell whether a stage was seen to step and its note is gone: it is being saved.

        A stage that was lost and started again has run for less time than before.
        """
        begun = self._begun.get(stage["key"])
        return stage["key"] not in self.notes and begun is not None and begun <= stage["running_s"]

    @property
    def is_over(self) -> bool:
        """Whether nothing runs any more, as far as the store shows."""
        return not self.drivers and not self.notes


def is_alive(key: str, note: dict[str, Any], drivers: list[dict[str, Any]]) -> bool:
    """Tell whether a stage with this progress note still runs: a slow step may be minutes old."""
    from recipe_ray.schedule.sweep_progress import STALE_S, age_s

    running = {stage["key"] for driver in drivers for stage in driver["running"]}
    return key in running or age_s(note) < STALE_S


def watch(store: Store, interval_s: float, console: Console) -> bool:
    """Draw the store again and again until nothing runs or Ctrl-C; False if nothing ran at all.

    If the console is not a terminal, the picture is printed again each time.
    """
    view = View(store)
    view.look()
    if view.is_over:
        return False
    try:
        _redraw(view, interval_s, console)
    except KeyboardInterrupt:
        console.print("the sweep goes on; this was only its picture")
    return True


def _redraw(view: View, interval_s: float, console: Console) -> None:
    with Live(draw(view), console=console, auto_refresh=False, transient=True) as screen:
        while not view.is_over:
            if console.is_terminal:
                screen.update(draw(view), refresh=True)
            else:
                console.print(draw(view))
            time.sleep(interval_s)
            view.look()


def draw(view: View) -> RenderableType:
    """Return the picture: one block per driver, what else runs, the last failures."""
    from recipe_ray.schedule.sweep_progress import stalled_s

    parts: list[RenderableType] = []
    shown: set[str] = set()
    for driver in view.drivers:
        keys = [stage["key"] for stage in driver["running"]]
        shown |= set(keys)
        parts += [_headline(driver), _Stages([*_rows(driver, view)])]
    stalled = stalled_s(view.drivers)
    if stalled is not None:
        parts.append(Text(stall(stalled, view.drivers), "yellow"))
    others = {key: note for key, note in view.notes.items() if key not in shown}
    if others:
        parts += [Text("outside of a sweep", style="bold"), _Stages([*others.values()])]
    return Group(*parts, *_failures(view))


def stall(seconds: float, drivers: list[dict[str, Any]]) -> str:
    """Return what to tell people of stages that wait while nothing runs."""
    waiting = max(driver["states"]["waiting"] for driver in drivers)
    return (
        f"stalled: nothing has run for {duration(seconds)} while {waiting} stages wait: what they "
        "need may be in use by others, or gone (`ray status` shows it)"
    )


def _headline(driver: dict[str, Any]) -> Text:
    states = driver["states"]
    total = sum(states.values())
    left_s = driver["left_s"]
    left = "time to go not known yet" if left_s is None else f"about {duration(left_s)} to go"
    title = Text(driver["experiment"], style="bold")
    # a search has parts instead of cells
    whole = driver.get("part") or f"{driver['cells_done']} of {driver['cells']} cells"
    title.append(
        f": {whole}, {states['done']} of {total} {driver['counted']} done, {states['running']} "
        f"running, {states['waiting']} waiting, {states['failed']} failed; {left}\n",
        style="not bold",
    )
    started = driver["started"][:19].replace("T", " ")
    title.append(
        f"driven by process {driver['pid']} on {driver['host']} since {started} UTC",
        style="dim",
    )
    return title


def _rows(driver: dict[str, Any], view: View) -> Iterator[dict[str, Any]]:
    for stage in driver["running"]:
        # before its first step a stage has no note: it loads its model and its data
        note = view.notes.get(stage["key"], {})
        yield {**stage, **note, "is_ending": view.is_ending(stage)}


@dataclass(frozen=True)
class _Stages:
    """Running stages, one line each; on a terminal too narrow for that two, without a bar."""

    rows: list[dict[str, Any]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        drawn = [(Text(f"  {_titled(row)}"), *_bar_and_words(row)) for row in self.rows]
        titles = max((title.cell_len for title, _, _ in drawn), default=0)
        words = max((told.cell_len for _, _, told in drawn), default=0)
        if titles + _BAR_WIDTH + words + 4 > options.max_width:
            for title, _, told in drawn:
                yield title
                yield Text("    ").append_text(told)
            return
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(width=_BAR_WIDTH)
        table.add_column(no_wrap=True)
        for row in drawn:
            table.add_row(*row)
        yield table


def _titled(note: dict[str, Any]) -> str:
    """Return what `Stage.caption` says of the stage of a note."""
    seed = note.get("seed")
    return f"{note['kind']} {note['label']}" + ("" if seed is None else f".s{seed}")


def _bar_and_words(row: dict[str, Any]) -> tuple[RenderableType, Text]:
    if row.get("is_ending"):
        return "", Text(f"saving, {duration(row['running_s'])}", "dim")
    if "step" not in row:
        return "", Text(f"starting, {duration(row['running_s'])}", "dim")
    advance = Throughput.from_note(row)
    progress = advance.progress
    words = [f"{progress.phase} {progress.step}/{progress.num_steps}"]
    if advance.samples_per_s is not None:
        words.append(f"{advance.samples_per_s:.0f} samples/s")
    if advance.left_s is not None:
        words.append(f"{duration(advance.left_s)} to go")
    words += [f"{term} {value:.3g}" for term, value in progress.values.items()]
    told = Text("  ".join(words)).append(f"  {row.get('host', '')}", "dim")
    return ProgressBar(progress.num_steps, progress.step, width=_BAR_WIDTH), told


def _failures(view: View) -> Iterator[Text]:
    latest = sorted(view.failures.values(), key=lambda note: str(note["time"]))[-_FAILURES_SHOWN:]
    for note in latest:
        yield Text(f"failed: {note['kind']} {note['label']}: {note['error']}", "red")
        said = str(note["message"]).strip().splitlines()
        yield Text(f"    {said[0][:200] if said else '(no message)'}", "red")


WatchOption = Annotated[
    bool, typer.Option("--watch", "-w", help="Show what runs, again and again, until it ends.")
]
IntervalOption = Annotated[
    float, typer.Option("--interval", min=0.2, help="Seconds between two looks of --watch.")
]
TracebackOption = Annotated[
    bool, typer.Option("--traceback", help="Show where in the code each failed stage failed.")
]
PruneOption = Annotated[
    bool, typer.Option("--prune", help="Delete checkpoints that nothing will resume from.")
]


def status_command(
    store: StoreOption = DEFAULT_STORE,
    watch_: WatchOption = False,
    interval: IntervalOption = 2.0,
    prune: PruneOption = False,
    traceback: TracebackOption = False,
    json_: JsonOption = False,
) -> None:
    """Show what is done, running and failed in a store, and why; --watch: while it runs."""
    from recipe_ray.experiment.collect import prune_checkpoints

    if watch_ and json_:
        raise SpecError("--watch draws for people, --json prints once: give one of them")
    opened = present_store(store, "--store")
    if watch_ and not watch(opened, interval, Console(highlight=False)):
        typer.echo("nothing runs on this store now")
    status = _status(opened, tracebacks=traceback)
    alive = {note["key"] for note in status["running"] if note["fresh"]}
    stale = prune_checkpoints(opened, alive) if prune else _stale(opened, alive)
    status["stale_checkpoints"] = {"count": len(stale), "bytes": sum(stale.values())}
    if json_:
        typer.echo(json.dumps(status, indent=1))
        return
    _print(status)
    if stale:
        size = f"{len(stale)} checkpoints ({sum(stale.values()) / 1e6:.1f} MB)"
        again = "deleted" if prune else "nothing will resume from them; --prune deletes them"
        typer.echo(f"  {size}: {again}")


def _plan(store: Store, experiment: str) -> dict[str, Any] | None:
    """Return what is known of an experiment's plan; a damaged one is named and left out."""
    from recipe_ray.store.notes import pass_over

    try:
        return store.plan(experiment)
    except DamagedError as error:
        pass_over("a damaged plan", error)
        return None


def _stale(store: Store, alive: Collection[str]) -> dict[str, int]:
    from recipe_ray.experiment.collect import stale_checkpoints

    try:
        return stale_checkpoints(store, alive)
    except DamagedError:  # it is named already; its stages' resume points are not known
        return {}


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
            f"  {state}: {_titled(note)}: {note['phase']} {note['step']}/{note['num_steps']}"
        )
    for note in status["failed"]:
        typer.secho(f"  failed: {note['kind']} {note['label']}-{note['key']}", fg="red")
        typer.echo(f"    {note['error']}: {note['message']}")
        for line in str(note.get("traceback", "")).splitlines():
            typer.echo(f"      {printable(line)}")
    if any("traceback" not in note for note in status["failed"]):
        typer.echo("  --traceback shows where in the code")


def _status(store: Store, *, tracebacks: bool) -> dict[str, Any]:
    done = set(store.committed())
    experiments = []
    for name in store.experiments():
        plan = _plan(store, name)
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
    from recipe_ray.schedule.sweep_progress import DriverNotes, stalled_s

    drivers = DriverNotes(store).living()
    running = [
        {"key": key, "fresh": is_alive(key, note, drivers), **note}
        for key, note in store.progress().items()
        if key not in done
    ]
    failed = [
        {"key": key, **{k: v for k, v in note.items() if tracebacks or k != "traceback"}}
        for key, note in store.failures().items()
    ]
    return {
        "experiments": experiments,
        "drivers": drivers,
        "stalled_s": stalled_s(drivers),
        "running": running,
        "failed": failed,
    }
