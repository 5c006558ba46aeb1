"""Parts of a running sweep die, on a cluster of simulated nodes; its numbers are the calm ones.

`pytest -m cluster tests/test_cluster_faults.py -s | grep recovery` prints how long each took.
"""

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_cell import FIT, tiny_plan

from benchmarks.faults import (
    Driver,
    Nodes,
    checkpoint_time,
    made_at,
    rows_of,
    simulated,
    tell_recovery,
    workers,
)
from benchmarks.survive import survive
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.plan import Plan
from recipe_ray.experiment.spec import Launch
from recipe_ray.stages.run import LOG_FILE
from recipe_ray.store.store import Store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

STEPS = 200
LAUNCH = Launch(workers={"purify": 2}, checkpoint_every_s=0.3, max_failures=1)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Run a cluster of a head and three nodes of one CPU each."""
    with simulated(num_nodes=3, cpus=1) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for the texts that all tests here share."""
    return tmp_path_factory.mktemp("texts")


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    """Return a plan of one purification on two DDP workers, and two fine-tunings."""
    slow = {"name": "recipe", "fit": {**FIT, "steps": STEPS}}
    made = tiny_plan(folder, attacks=["none"], defenses=["none", slow])
    return replace(made, launch=LAUNCH)


@pytest.fixture(scope="module")
def calm(plan: Plan, folder: Path, nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store in which the plan ran undisturbed."""
    store = tmp_path_factory.mktemp("calm") / "store"
    outcome = Driver(plan, places(folder), store, nodes.address, folder).outcome()
    assert not outcome["failed"]
    return store


def places(folder: Path) -> Locations:
    return Locations(None, folder)


def purification(plan: Plan) -> str:
    return next(key for key, stage in plan.stages.items() if stage.name == "purify")


def resumed_at(store: Path, plan: Plan) -> int:
    """Return the first step that the committed purification did in its last try."""
    stage = plan.stages[purification(plan)]
    log = (Store.open(store).fetch(stage.artifact) / LOG_FILE).read_text()
    return int(re.findall(r" purify (\d+)/", log)[0])


def test_a_killed_train_worker_costs_what_was_done_since_the_last_checkpoint(
    plan: Plan, folder: Path, nodes: Nodes, calm: Path, tmp_path: Path
) -> None:
    store, key = tmp_path / "store", purification(plan)
    driver = Driver(plan, places(folder), store, nodes.address, tmp_path)
    driver.until("a checkpoint", lambda: checkpoint_time(store, key))
    # the worker that writes no log: the other one keeps the checkpoint
    victim = next(pid for pid, logs in workers(store).items() if not logs)
    killed = time.time()
    os.kill(victim, signal.SIGKILL)
    driver.until("the loss", lambda: key in driver.heard("lost"))
    lost = time.time()
    driver.until("going on", lambda: went_on(store, driver, [key], lost))
    tell_recovery("train worker killed", time.time() - killed)
    outcome = driver.outcome()
    assert (len(outcome["done"]), outcome["failed"]) == (3, {})
    assert resumed_at(store, plan) > 1
    assert rows_of(store, plan) == rows_of(calm, plan)


@pytest.fixture(scope="module")
def wide(folder: Path) -> Plan:
    """Return a plan of five fine-tunings, each in the process of its trial."""
    made = tiny_plan(folder, attacks=["none"], defenses=["none"], seeds=[0, 1, 2, 3, 4])
    slow = {
        stage.key: stage
        for cell in made.cells
        if (stage := cell.last.revised(fit=cell.last.fit.revised(steps=STEPS)))
    }
    return replace(made, cells=(), stages=slow, launch=LAUNCH)


@pytest.fixture(scope="module")
def wide_rows(wide: Plan, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the rows of that plan, run one after the other without Ray."""
    store, threads = tmp_path_factory.mktemp("wide"), torch.get_num_threads()
    torch.set_num_threads(1)
    run_inline(wide.stages.values(), Store.open(store), places(folder))
    torch.set_num_threads(threads)
    return rows_of(store, wide)


@pytest.mark.parametrize("how", ["lose", "preempt"])
def test_a_node_that_goes_costs_its_stages_nothing_of_their_failures(
    wide: Plan, wide_rows: Any, folder: Path, nodes: Nodes, tmp_path: Path, how: str
) -> None:
    store = tmp_path / "store"
    strict = replace(wide, launch=LAUNCH.revised(max_failures=0))
    driver = Driver(strict, places(folder), store, nodes.address, tmp_path)
    begun = driver.until("a stage with a checkpoint", lambda: [*(store / "checkpoints").glob("*")])
    node = driver.until("its node", lambda: nodes.of(next(iter(workers(store)), 0)))
    went = time.time()
    getattr(nodes, how)(node)
    lost = driver.until("the loss", lambda: driver.heard("lost"))
    driver.until("going on", lambda: went_on(store, driver, lost, went))
    tell_recovery(f"node: {how}", time.time() - went)
    outcome = driver.outcome()
    nodes.add()
    assert begun
    assert (len(outcome["done"]), outcome["failed"]) == (5, {})
    assert rows_of(store, wide) == wide_rows


def went_on(store: Path, driver: Driver, lost: list[str], since: float) -> bool:
    """Tell whether a lost stage has a newer resume point, or is done."""
    newer = any(checkpoint_time(store, key) > since for key in lost)
    return newer or bool(set(driver.heard("finished", since)) & set(lost))


def test_a_driver_stopped_and_then_killed_in_a_ddp_stage_loses_nothing_committed(
    plan: Plan, folder: Path, nodes: Nodes, calm: Path, tmp_path: Path
) -> None:
    store, key = tmp_path / "store", purification(plan)
    made: dict[str, str] = {}
    for stop in (Driver.interrupt, Driver.terminate, Driver.kill):
        driver = Driver(plan, places(folder), store, nodes.address, tmp_path)
        began = time.time()
        driver.until("a checkpoint", lambda since=began: checkpoint_time(store, key) > since)
        assert made == {one: made_at(store, plan)[one] for one in made}
        made = made_at(store, plan)
        stop(driver)
        gone(store)
    restarted = time.time()
    driver = Driver(plan, places(folder), store, nodes.address, tmp_path)
    driver.until("going on", lambda: went_on(store, driver, [key], restarted))
    tell_recovery("driver killed, from its restart", time.time() - restarted)
    outcome = driver.outcome()
    assert not outcome["failed"]
    assert made.items() <= made_at(store, plan).items()
    assert made.keys() <= set(outcome["skipped"])
    assert resumed_at(store, plan) > 1
    assert rows_of(store, plan) == rows_of(calm, plan)
    assert list((store / "drivers").iterdir()) == []
    assert list((store / "tmp").iterdir()) == []


def gone(store: Path) -> None:
    """Wait until no process works on a store any more: Ray ends those of a dead driver."""
    give_up_at = time.monotonic() + 60
    while workers(store):
        assert time.monotonic() < give_up_at
        time.sleep(0.1)


def test_two_drivers_on_one_store_build_each_stage_once(
    wide: Plan, wide_rows: Any, folder: Path, nodes: Nodes, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    drivers = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        drivers.append(Driver(wide, places(folder), store, nodes.address, tmp_path / name))
    outcomes = [driver.outcome() for driver in drivers]
    done = [key for outcome in outcomes for key in outcome["done"]]
    assert sorted(done) == sorted(wide.stages)
    assert sorted(drivers[0].heard("started") + drivers[1].heard("started")) == sorted(done)
    for outcome in outcomes:
        assert sorted(outcome["done"] + outcome["skipped"]) == sorted(wide.stages)
    assert rows_of(store, wide) == wide_rows


def test_one_sweep_survives_a_killed_worker_a_lost_node_and_a_killed_driver(
    folder: Path, tmp_path: Path
) -> None:
    slow = {"name": "recipe", "fit": {**FIT, "steps": STEPS}}
    made = tiny_plan(folder, attacks=["none"], defenses=[slow], seeds=[0, 1, 2])
    survive(replace(made, launch=LAUNCH), places(folder), tmp_path)
