"""One damaged note or plan in a store: it is named and passed over, nothing else stops."""

import json
from pathlib import Path

import pytest
from shell import Shell, shell
from store_samples import POR, driven, leave_lease, so_far

from recipe_ray.base.process import Process
from recipe_ray.schedule.sweep_progress import DriverNotes
from recipe_ray.store import notes
from recipe_ray.store.claims import DRIVERS
from recipe_ray.store.store import ArtifactId, Store

__all__ = ["shell"]  # a fixture
GOOD = ArtifactId("purify", "bert-por-recipe", "b2")
NOW = '"time": "2026-01-02T03:04:05+00:00", "kind": "purify", "label": "x"'
DAMAGED = {
    "empty": b"",
    "cut short": b'{"time": "2026-01-0',
    "no text": bytes(range(128, 256)),
    "a list": b"[1, 2]",
    "a number": b"7",
    "endless": b"[" * 200_000,
    "no fields": b"{}",
    "no time": b'{"kind": "purify", "label": "x", "error": "E", "message": "m"}',
    "time as number": b'{"time": 5, "kind": "purify", "label": "x"}',
    "time without zone": NOW.replace("+00:00", "").join(("{", "}")).encode(),
    "nothing but what the store adds": f"{{{NOW}}}".encode(),
    "wrong types": f'{{{NOW}, "error": [], "phase": 1, "step": "many"}}'.encode(),
}


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test hear what is said once per process."""
    monkeypatch.setattr(notes, "_named", set())


def damage(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("folder", ["failures", "progress", "drivers"])
def test_a_damaged_note_is_named_once_and_the_others_are_read(
    tmp_path: Path, folder: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store.open(tmp_path)
    store.record_failure(GOOD, {"error": "RuntimeError", "message": "too large"})
    store.write_progress(GOOD, so_far(3))
    leave_lease(store, "d1", driven("small"))
    damage(tmp_path, f"{folder}/bad.json", content)
    for _ in range(2):
        assert list(store.failures()) == [GOOD.key]
        assert list(store.progress()) == [GOOD.key]
        assert [note["driver"] for note in DriverNotes(store).living()] == ["d1"]
    assert store.failure("bad") is None
    said = [record.getMessage() for record in caplog.records if folder in record.getMessage()]
    assert len([line for line in said if "is ignored" in line and "delete it" in line]) == 1


def test_status_shows_the_rest_and_names_what_is_damaged(
    shell: Shell, caplog: pytest.LogCaptureFixture
) -> None:
    folder = shell.folder / "store"
    store = Store.open(folder)
    store.write_plan("small", {"cells": [], "stages": {"k1": {}}})
    store.record_failure(GOOD, {"error": "RuntimeError", "message": ""})
    store.write_checkpoint("unplanned", b"resume from here")
    bad = [f"{name}/bad.json" for name in ("plans", "failures", "progress", "drivers")]
    for name in bad:
        damage(folder, name, b'{"cut sho')
    done = shell("status", "--store", "store")
    assert done.code == 0
    assert "small: 0 of 0 cells, 0 of 1 stages" in done.out
    assert "failed: purify bert-por-recipe-b2" in done.out
    assert all(any(name in line for line in caplog.messages) for name in bad)
    status = json.loads(shell("status", "--store", "store", "--json").out)
    assert status["stale_checkpoints"] == {"count": 0, "bytes": 0}  # of which plan, nobody knows
    # to delete by what cannot be read would be to guess
    assert "plans/bad.json" in shell.fails("status", "--store", "store", "--prune")
    assert store.read_checkpoint("unplanned") is not None


def test_a_note_that_may_not_be_read_or_is_a_folder_stops_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.record_failure(GOOD, {"error": "RuntimeError", "message": "too large"})
    for folder in ("failures", "progress", "drivers"):
        (tmp_path / folder / "bad.json" / "x").mkdir(parents=True)
    assert list(store.failures()) == [GOOD.key]
    assert store.progress() == {}
    with store.claims(60) as claims:
        assert claims.take(POR.key)


def test_the_next_driver_removes_damaged_leases_that_hold_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    leave_lease(store, "d1", driven("other"))
    bad = damage(tmp_path, "drivers/bad.json", b"{")
    with store.claims(60, lambda: driven("small")):
        assert not bad.exists()
        assert {note["experiment"] for note in DriverNotes(store).all()} == {"other", "small"}
    assert [note["driver"] for note in DriverNotes(store).all()] == ["d1"]


@pytest.mark.parametrize("content", [*DAMAGED.values(), b'{"process": "x-\xc2\xb2-1"}'])
def test_a_driver_whose_lease_is_damaged_holds_its_stage_for_a_lease_at_most(
    tmp_path: Path, content: bytes
) -> None:
    damage(tmp_path, f"{DRIVERS}/other-1-1-00000000.json", content)
    damage(tmp_path, f"claims/{POR.key}.other-1-1-00000000", b"")
    with Store.open(tmp_path).claims(lease_s=60) as claims:
        assert claims.held() == {POR.key: "other-1-1-00000000"}
        assert claims.take("another")


@pytest.mark.parametrize("text", ["", "x", "x-\u00b2-1", f"x-{10**30}-1", "x--1-1", "x-1-1 "])
def test_what_names_no_process_is_none(text: str) -> None:
    assert Process.parse(text) is None
