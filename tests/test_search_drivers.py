"""A search among other drivers and watchers: whose turn its candidates are, how far it is."""

import io
import os
import platform
import threading
from pathlib import Path

import pytest
from rich.console import Console
from tiny_search import tiny_search

from recipe_ray.cli.status import View, draw
from recipe_ray.distributed import search as turns
from recipe_ray.distributed.asha import CandidateEvent
from recipe_ray.distributed.search import SearchProgress, search_lock
from recipe_ray.experiment.search import drawn_at_random
from recipe_ray.experiment.search_plan import Course, Record, is_over
from recipe_ray.store.store import Store

KEY = "0" * 16


def test_of_two_drivers_one_holds_the_candidates_and_the_other_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LOOK_EVERY_S", 0.02)
    store = Store.open(tmp_path)
    waits: list[str] = []
    waiting, entered = threading.Event(), threading.Event()

    def told(driver: str) -> None:
        waits.append(driver)
        waiting.set()

    def second() -> None:
        with store.claims(60) as claims, search_lock(claims, KEY, told):
            entered.set()

    other = threading.Thread(target=second)
    with store.claims(60) as claims, search_lock(claims, KEY, waits.append):
        other.start()
        assert waiting.wait(10)
        assert not entered.wait(0.3)
    assert entered.wait(10)
    other.join(10)
    assert waits == [f"another driver, process {os.getpid()} on {platform.node()}"]
    assert _claims(tmp_path) == []


def test_a_driver_taken_for_dead_finds_that_its_candidates_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LOOK_EVERY_S", 0.0)
    store = Store.open(tmp_path)
    with store.claims(60) as mine, search_lock(mine, KEY, print) as lock:
        assert not lock.is_lost()
        # what a driver does with the claims of one that was silent for a lease
        next((tmp_path / "claims").glob(f"{KEY}.*")).unlink()
        with store.claims(60) as theirs, search_lock(theirs, KEY, print) as other:
            assert lock.is_lost()
            assert not other.is_lost()
        assert lock.is_lost()  # for good: what it ran is stopped


def test_other_searches_do_not_wait(tmp_path: Path) -> None:
    store, waits = Store.open(tmp_path), list[str]()
    with (
        store.claims(60) as mine,
        store.claims(60) as theirs,
        search_lock(mine, KEY, waits.append),
        search_lock(theirs, "1" * 16, waits.append),
    ):
        assert len(_claims(tmp_path)) == 2
    assert waits == []


def test_its_note_counts_candidates_and_the_live_view_shows_them(tmp_path: Path) -> None:
    plan = tiny_search(tmp_path, trials=5)
    courses = [Course(plan.candidate(settings)) for settings in drawn_at_random(plan.search)]
    stopped, diverged, before, running, _ = courses
    standing = SearchProgress(plan.search)
    standing.on_part("candidates, compared after epochs 1, 2, 4")
    before.ended = "finished"
    standing.on_candidate(CandidateEvent("skipped", before))
    for course in (stopped, diverged, running):
        standing.on_candidate(CandidateEvent("started", course))
    for course, how in ((stopped, "stopped"), (diverged, "diverged")):
        course.ended = how
        standing.on_candidate(CandidateEvent("ended", course))
    store = Store.open(tmp_path / "store")
    with store.claims(60, standing.note):
        view = View(store)
        view.look()
        shown = _drawn(view)
    counts = "2 of 5 candidates done, 1 running, 1 waiting, 1 failed"
    assert f"tiny: candidates, compared after epochs 1, 2, 4, {counts}" in shown
    assert running.candidate.purify.label() in shown
    view.look()
    assert view.is_over


def test_a_search_with_a_candidate_that_failed_is_not_over(tmp_path: Path) -> None:
    plan, store = tiny_search(tmp_path, trials=2), Store.open(tmp_path / "store")
    record = Record(plan, store)
    for settings, how in zip(drawn_at_random(plan.search), ("finished", "diverged"), strict=True):
        record.begin(settings).ended = how
    record.save(over=True)
    assert is_over(plan, store)
    record.begin(drawn_at_random(plan.search)[0]).ended = "failed"  # it is tried again
    record.save(over=True)
    assert not is_over(plan, store)


def _claims(folder: Path) -> list[str]:
    return [path.name for path in (folder / "claims").iterdir() if path.is_file()]


def _drawn(view: View) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(draw(view))
    return out.getvalue()
