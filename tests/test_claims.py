"""Several drivers on one store: of each stage one is the builder, and the dead hold nothing."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import psutil
import pytest
from store_samples import SPAWN, driven, leave_lease, s3_server

from recipe_ray.base.process import Process
from recipe_ray.schedule.sweep_progress import DriverNotes
from recipe_ray.store.claims import DRIVERS
from recipe_ray.store.store import Store

KEYS = [f"{number:016x}" for number in range(12)]


@pytest.fixture(params=["folder", "S3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return a store in a folder, then one on an S3 server."""
    if request.param == "folder":
        yield Store.open(tmp_path)
        return
    with s3_server() as options:
        yield Store.open(f"s3://bucket/{tmp_path.name}?{options}")


def _take_all(uri: str, start: Barrier, taken: Any) -> None:
    with Store.open(uri).claims(lease_s=30) as claims:
        start.wait(60)
        taken.put([key for key in KEYS if claims.take(key)])
        start.wait(60)  # nobody lets go before all have tried


def test_of_racing_drivers_exactly_one_gets_each_stage(tmp_path: Path) -> None:
    start, taken = SPAWN.Barrier(3), SPAWN.Queue()
    racers = [SPAWN.Process(target=_take_all, args=(str(tmp_path), start, taken)) for _ in range(3)]
    for racer in racers:
        racer.start()
    got = [key for _ in racers for key in taken.get(timeout=60)]
    for racer in racers:
        racer.join(60)
        assert racer.exitcode == 0
    assert sorted(got) == KEYS


def test_what_one_driver_holds_another_neither_gets_nor_waits_for_long(store: Store) -> None:
    with store.claims(60) as one, store.claims(60) as two:
        assert one.take(KEYS[0])
        assert not two.take(KEYS[0])
        assert two.held() == {KEYS[0]: one.driver}
        one.release(KEYS[0])
        assert two.take(KEYS[0])
        assert one.held() == {KEYS[0]: two.driver}


def test_of_two_that_claim_at_the_same_moment_one_gets_it(store: Store) -> None:
    with store.claims(60) as one, store.claims(60) as two, ThreadPoolExecutor(2) as pool:
        for key in KEYS[:4]:
            outcomes = list(pool.map(lambda claims, key=key: claims.take(key), (one, two)))
            assert sorted(outcomes) == [False, True]


def test_a_driver_that_ends_lets_go_of_everything(store: Store) -> None:
    with store.claims(60) as one:
        assert all(one.take(key) for key in KEYS[:3])
    with store.claims(60) as two:
        assert two.held() == {}
        assert two.take(KEYS[0])


_KILLED = """
import sys
from recipe_ray.store.store import Store
with Store.open(sys.argv[1]).claims(lease_s=3600) as claims:
    assert claims.take(sys.argv[2])
    print("taken", flush=True)
    sys.stdin.read()
"""


def test_a_driver_killed_on_this_machine_holds_nothing_from_then_on(tmp_path: Path) -> None:
    with (
        subprocess.Popen(
            [sys.executable, "-c", _KILLED, tmp_path, KEYS[0]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as driver,
        Store.open(tmp_path).claims(3600) as claims,
    ):
        assert driver.stdout is not None
        assert driver.stdout.readline() == "taken\n"
        assert not claims.take(KEYS[0])
        driver.kill()
        # not waited for: a parent that never asks leaves a zombie, which must count as dead
        time.sleep(0.5)
        assert claims.take(KEYS[0])
    assert list((tmp_path / DRIVERS).iterdir()) == []


def _sign_of_another_machine(folder: Path, number: int) -> str:
    driver = "feedfeedfeed-1-1-00000000"
    sign = {"number": number, "time": datetime.now(UTC).isoformat()}
    for needed in (DRIVERS, "claims"):
        (folder / needed).mkdir(parents=True, exist_ok=True)
    (folder / DRIVERS / f"{driver}.json").write_text(json.dumps(sign))
    return driver


def test_a_silent_driver_of_another_machine_is_dead_after_a_lease(tmp_path: Path) -> None:
    driver = _sign_of_another_machine(tmp_path, 0)
    (tmp_path / "claims" / f"{KEYS[0]}.{driver}").touch()
    with Store.open(tmp_path).claims(lease_s=1.2) as claims:
        begun = time.monotonic()
        while claims.held():
            assert time.monotonic() - begun < 20
            time.sleep(0.05)
        assert time.monotonic() - begun > 1.0
        assert claims.take(KEYS[0])
    assert list((tmp_path / DRIVERS).iterdir()) == []


def test_a_driver_that_renews_its_claims_keeps_them(tmp_path: Path) -> None:
    driver = _sign_of_another_machine(tmp_path, 0)
    (tmp_path / "claims" / f"{KEYS[0]}.{driver}").touch()
    with Store.open(tmp_path).claims(lease_s=1.2) as claims:
        for number in range(1, 10):
            _sign_of_another_machine(tmp_path, number)
            assert claims.held() == {KEYS[0]: driver}
            time.sleep(0.3)


def test_claims_are_renewed_while_the_driver_lives(tmp_path: Path) -> None:
    with Store.open(tmp_path).claims(lease_s=1.2) as claims:
        sign = tmp_path / DRIVERS / f"{claims.driver}.json"
        before = sign.read_text()
        time.sleep(0.6)
        assert sign.read_text() != before


def test_silence_while_nobody_looked_proves_nothing(tmp_path: Path) -> None:
    driver = _sign_of_another_machine(tmp_path, 0)
    (tmp_path / "claims" / f"{KEYS[0]}.{driver}").touch()
    with Store.open(tmp_path).claims(lease_s=1.2) as claims:
        assert claims.held()
        time.sleep(1.5)  # the store was down, or this machine asleep
        assert claims.held() == {KEYS[0]: driver}


def test_one_file_of_a_driver_holds_its_claims_and_is_what_people_see(store: Store) -> None:
    with store.claims(60, lambda: driven("small")) as claims:
        assert claims.take(KEYS[0])
        (seen,) = DriverNotes(store).living()
        assert (seen["driver"], seen["experiment"], seen["pid"]) == (
            claims.driver,
            "small",
            os.getpid(),
        )
        # without that file nothing holds the claim
        with store.claims(60) as other:
            assert other.held() == {KEYS[0]: claims.driver}
            claims._files.remove(f"{DRIVERS}/{claims.driver}.json")
            assert other.held() == {}
        claims.held()
        assert claims.lost == {KEYS[0]}
    assert DriverNotes(store).all() == []


def test_claims_are_kept_if_what_people_see_cannot_be_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = iter([driven("small")])  # and then an error each time
    with Store.open(tmp_path).claims(1.2, lambda: next(told)) as claims:
        assert claims.take(KEYS[0])
        time.sleep(0.5)
        lease = json.loads((tmp_path / DRIVERS / f"{claims.driver}.json").read_text())
    assert lease["number"] > 1
    assert lease["experiment"] == "small"
    assert "out of date" in caplog.text


def test_leases_of_the_dead_that_hold_nothing_go_when_a_driver_starts(tmp_path: Path) -> None:
    store, this = Store.open(tmp_path), Process.this()
    gone = f"{Process(this.machine, this.pid, '1')}-00000000"
    elsewhere = [f"feedfeedfeed-{number}-1-00000000" for number in range(3)]
    for driver in (gone, f"{this}-00000000", *elsewhere):
        leave_lease(store, driver, driven("small"))
    long_ago = (datetime.now(UTC) - timedelta(days=2)).isoformat()
    for driver in elsewhere[:2]:
        file = tmp_path / DRIVERS / f"{driver}.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "time": long_ago}))
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / f"{KEYS[0]}.{elsewhere[0]}").touch()  # silence for a lease decides
    with store.claims(60) as claims:
        assert claims.held() == {KEYS[0]: elsewhere[0]}
    left = {path.stem for path in (tmp_path / DRIVERS).iterdir()}
    assert left == {f"{this}-00000000", elsewhere[0], elsewhere[2]}


def test_a_process_is_known_to_be_gone_only_where_it_ran() -> None:
    this = Process.this()
    assert Process.parse(str(this)) == this
    assert not this.is_gone
    assert Process(this.machine, this.pid, "1").is_gone  # its number was given away
    assert not Process("feedfeedfeed", this.pid, "1").is_gone
    child = subprocess.Popen(["true"])
    gone = Process(this.machine, child.pid, this.started)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet asked for
    assert gone.is_gone
    child.wait()
    assert gone.is_gone


def test_a_process_keeps_its_name_when_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Process.this()
    booted = psutil.boot_time()
    hour_later = "psutil.boot_time", "psutil._pslinux.boot_time"
    for name in hour_later:
        monkeypatch.setattr(name, lambda: booted + 3600)
    assert psutil.boot_time() == booted + 3600
    assert not before.is_gone


def test_a_living_process_that_proc_hides_from_us_is_not_taken_for_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Process(Process.this().machine, 4242, "77")

    def hidden(pid: int) -> None:
        raise psutil.NoSuchProcess(pid)

    def refused(pid: int, signal: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(psutil, "Process", hidden)
    monkeypatch.setattr(os, "kill", refused)
    assert not other.is_gone


def test_a_forked_process_has_a_name_of_its_own() -> None:
    before = Process.this()
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, str(Process.this()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    named = Process.parse(os.read(read, 100).decode())
    assert named is not None
    assert (named.machine, named.pid) == (before.machine, child)
    assert named.is_gone
