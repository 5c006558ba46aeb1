"""The live view of the sweeps that run on a store, from the store alone: any terminal, any host.

A look costs two listings and one small file a driver and a running stage; failures are read only
where a driver says that there are more of them, and what is committed is not listed at all.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from recipe_ray.cli.display import duration
from recipe_ray.stages.advance import Advance
from recipe_ray.stages.drivers import STALE_S, DriverNotes, age_s, stalled_s
from recipe_ray.stages.store import Store

_BAR_WIDTH = 16
_FAILURES_SHOWN = 5


@dataclass
class View:
    """What was seen of a store at the last look."""

    store: Store
    drivers: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    _failed: int = 0

    def look(self) -> None:
        """Read the notes of drivers and running stages again, and failures where there are new."""
        self.drivers = DriverNotes(self.store).living()
        self.notes = {
            key: note
            for key, note in self.store.progress().items()
            if is_alive(key, note, self.drivers)
        }
        failed = sum(driver["states"]["failed"] for driver in self.drivers)
        if failed > self._failed:
            self.failures = self.store.failures()
        self._failed = failed

    @property
    def is_over(self) -> bool:
        """Whether nothing runs any more, as far as the store tells."""
        return not self.drivers and not self.notes


def is_alive(key: str, note: dict[str, Any], drivers: list[dict[str, Any]]) -> bool:
    """Tell whether a stage with this progress note runs still: a slow step may be minutes old."""
    running = {stage["key"] for driver in drivers for stage in driver["running"]}
    return key in running or age_s(note) < STALE_S


def watch(store: Store, interval_s: float, console: Console) -> bool:
    """Draw the store again and again until nothing runs or Ctrl-C; False if nothing ran at all.

    Where the console is no terminal, the picture is printed anew each time.
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
    """Return the picture: a block for every driver, what else runs, the last failures."""
    parts: list[RenderableType] = []
    shown: set[str] = set()
    for driver in view.drivers:
        keys = [stage["key"] for stage in driver["running"]]
        shown |= set(keys)
        parts += [_headline(driver), _table(_rows(driver, view.notes))]
    stalled = stalled_s(view.drivers)
    if stalled is not None:
        parts.append(Text(stall(stalled, view.drivers), "yellow"))
    others = {key: note for key, note in view.notes.items() if key not in shown}
    if others:
        parts += [Text("outside of a sweep", style="bold"), _table(others.values())]
    return Group(*parts, *_failures(view))


def stall(seconds: float, drivers: list[dict[str, Any]]) -> str:
    """Return what people are told of stages that wait while nothing runs."""
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


def _rows(driver: dict[str, Any], notes: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for stage in driver["running"]:
        # before its first step a stage has no note: it loads its model and its data
        yield {**stage, **notes.get(stage["key"], {})}


def _table(rows: Any) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    # on a narrow terminal the last one is folded, nothing is cut off
    table.add_column(no_wrap=True)
    table.add_column(width=_BAR_WIDTH)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(f"  {escape(row['kind'])} {escape(row['label'])}", *_bar_and_words(row))
    return table


def _bar_and_words(row: dict[str, Any]) -> tuple[RenderableType, Text]:
    if "step" not in row:
        return "", Text(f"starting, {duration(row['running_s'])}", "dim")
    advance = Advance.from_note(row)
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
        yield Text(f"    {str(note['message']).splitlines()[0][:200]}", "red")
