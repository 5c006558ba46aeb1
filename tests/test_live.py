"""The live view: what it draws of a store, when it ends, what it costs. Nothing runs here."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from shell import Shell, shell
from store_samples import leave_lease

from recipe_ray.cli import status as live
from recipe_ray.cli.status import View, draw, watch
from recipe_ray.learn.progress import Progress, Throughput
from recipe_ray.store.files import LocalFiles
from recipe_ray.store.store import ArtifactId, Store

__all__ = ["shell"]  # a fixture
PURIFY, FINETUNE = ArtifactId("purify", "bert.por.recipe", "p1"), ArtifactId("finetune", "x", "f1")


def driving(experiment: str, *running: ArtifactId, failed: int = 0) -> dict[str, Any]:
    states = {"waiting": 5, "running": len(running), "done": 4, "failed": failed}
    return {
        "experiment": experiment,
        "host": "node-7",
        "pid": 4242,
        "started": "2026-01-02T03:04:05+00:00",
        "cells": 6,
        "cells_done": 2,
        "counted": "stages",
        "states": states,
        "left_s": 750.0,
        "running": [
            {"key": one.key, "kind": one.kind, "label": one.label, "running_s": 3.0}
            for one in running
        ],
    }


def note(step: int = 25) -> dict[str, Any]:
    progress = Progress("purify", step, 100, {"mlm": 2.345, "norm": 80.0}, 32)
    return {**Throughput(progress, 9.0, 210.4, 90.0).to_note(), "host": "node-8"}


def aged(folder: Path, name: str) -> None:
    """Make a note ten years older, as if its writer had been killed."""
    path = folder / name
    path.write_text(path.read_text().replace('"time": "202', '"time": "201'))


def drawn(view: View, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(draw(view))
    return out.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Return a store on which two sweeps run; the second has yet to load its model."""
    opened = Store.open(tmp_path / "store")
    leave_lease(opened, "a", driving("small", PURIFY))
    leave_lease(opened, "b", driving("large", FINETUNE))
    opened.write_progress(PURIFY, note())
    return opened


def test_it_shows_every_sweep_its_stages_and_who_drives_it(store: Store) -> None:
    view = View(store)
    view.look()
    shown = drawn(view)
    for said in (
        "small: 2 of 6 cells, 4 of 10 stages done, 1 running, 5 waiting, 0 failed",
        "about 12.5 min to go",
        "process 4242 on node-7 since 2026-01-02 03:04:05 UTC",
        "purify bert.por.recipe",
        "25/100",
        "210 samples/s",
        "1.5 min to go",
        "mlm 2.35  norm 80",
        "node-8",
        "large: ",
    ):
        assert said in shown
    (starting,) = [line for line in shown.splitlines() if "finetune x" in line]
    assert "starting" in starting


def test_a_stage_that_has_taken_its_last_step_is_saved_and_not_starting(store: Store) -> None:
    view = View(store)
    view.look()
    store.clear_progress(PURIFY)  # as the commit does, seconds before the driver hears of it
    view.look()
    (line,) = [line for line in drawn(view).splitlines() if "purify bert" in line]
    assert "saving, 3 s" in line
    again = driving("small", PURIFY)
    again["running"][0]["running_s"] = 1.0  # it was lost, and its process starts again
    leave_lease(store, "a", again)
    view.look()
    (line,) = [line for line in drawn(view).splitlines() if "purify bert" in line]
    assert "starting, 1 s" in line


def test_a_narrow_terminal_breaks_no_number_from_its_unit(store: Store) -> None:
    view = View(store)
    view.look()
    lines = [line.strip() for line in drawn(view, 80).splitlines()]
    assert "purify bert.por.recipe" in lines
    assert "purify 25/100  210 samples/s  1.5 min to go  mlm 2.35  norm 80  node-8" in lines


def test_failures_are_read_when_a_driver_says_that_there_are_new_ones(store: Store) -> None:
    view = View(store)
    store.record_failure(FINETUNE, {"error": "NonFiniteLossError", "message": "step 3: [nan]"})
    view.look()
    assert "NonFiniteLossError" not in drawn(view)
    leave_lease(store, "b", driving("large", failed=1))
    view.look()
    assert "failed: finetune x: NonFiniteLossError" in drawn(view)
    assert "step 3: [nan]" in drawn(view)


def test_a_look_costs_two_listings_and_a_file_a_driver_and_stage(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name in ("names", "read", "exists", "holding"):
        monkeypatch.setattr(LocalFiles, name, _counted(name, asked))
    View(store).look()
    assert sorted(asked) == ["names", "names", "read", "read", "read"]


def _counted(name: str, asked: list[str]) -> Callable[..., Any]:
    whole = getattr(LocalFiles, name)

    def counted(*inputs: Any) -> Any:
        asked.append(name)
        return whole(*inputs)

    return counted


def test_it_ends_when_no_driver_lives_and_nothing_moves(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"

    def events() -> Iterator[None]:
        leave_lease(store, "a", {}).unlink()  # ended well
        store.clear_progress(PURIFY)
        yield
        aged(folder, "drivers/b.json")  # killed
        yield

    happened = events()
    monkeypatch.setattr(live.time, "sleep", lambda seconds: next(happened))
    out = io.StringIO()
    assert watch(store, 1.0, Console(file=out, width=200))
    assert out.getvalue().count("small: ") == 1
    assert out.getvalue().count("large: ") == 2
    assert not watch(store, 1.0, Console(file=out))


def test_ctrl_c_ends_the_picture_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(live.time, "sleep", interrupted)
    out = io.StringIO()
    assert watch(store, 1.0, Console(file=out, width=200))
    assert "the sweep goes on" in out.getvalue()


def test_a_stage_of_a_living_driver_runs_however_old_its_note_is(
    store: Store, shell: Shell, tmp_path: Path
) -> None:
    aged(tmp_path / "store", "progress/p1.json")
    assert "running: purify" in shell("status", "--store", "store").out
    leave_lease(store, "a", {}).unlink()
    assert "stopped without an end: purify" in shell("status", "--store", "store").out


def test_watching_a_quiet_store_says_so_and_shows_what_is_there(shell: Shell) -> None:
    (shell.folder / "quiet").mkdir()
    done = shell("status", "--store", "quiet", "--watch")
    assert done.code == 0
    assert "nothing runs on this store now" in done.out


def test_watch_and_json_are_not_given_together(shell: Shell) -> None:
    (shell.folder / "quiet").mkdir()
    assert "give one of them" in shell.fails("status", "--store", "quiet", "--watch", "--json")


def test_a_stall_is_shown_in_the_picture_and_in_the_status(shell: Shell) -> None:
    store = Store.open(shell.folder / "store")
    store.write_plan("small", {"cells": [], "stages": {}})
    waiting = {**driving("small"), "idle_s": 95.0}
    leave_lease(store, "a", waiting)
    leave_lease(store, "b", {**driving("small"), "idle_s": 130.0})
    view = View(store)
    view.look()
    said = "stalled: nothing has run for 1.6 min while 5 stages wait"
    assert said in drawn(view)
    assert said in shell("status", "--store", "store").out
    assert json.loads(shell("status", "--store", "store", "--json").out)["stalled_s"] == 95.0
    leave_lease(store, "b", {**driving("small", PURIFY), "idle_s": 0.0})
    assert "stalled" not in shell("status", "--store", "store").out
