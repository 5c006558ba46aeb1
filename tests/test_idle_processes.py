"""Several drivers on one cluster: what has nothing to run holds nothing, so all come to an end."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_cluster import real_cluster

from benchmarks.faults import Driver
from benchmarks.noop import NOWHERE, idle_plan
from recipe_ray.store.store import Store

WORK_S, IDLE_S = 240.0, 40.0  # of a busy machine


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Wait until a condition holds; tell whether it came to."""
    give_up_at = time.monotonic() + seconds
    while not (held := condition()) and time.monotonic() < give_up_at:
        time.sleep(0.2)
    return held


def free_cpus() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0.0))


@pytest.mark.timeout(600)
def test_a_driver_that_waits_for_another_gives_its_cpus_back(
    ray_session: None, tmp_path: Path
) -> None:
    from recipe_ray.distributed.sweep import sweep

    assert all(key == stage.key for key, stage in idle_plan(20).stages.items())
    all_cpus = free_cpus()
    plan = idle_plan(20).limited(1)
    store = Store.open(tmp_path)
    last = plan.cells[0].last
    seen: list[bool] = []

    with store.claims(60) as other:
        assert other.take(last.key)

        def let_go_when_all_is_free() -> None:
            seen.append(within(WORK_S, lambda: len(store.committed()) == len(plan.stages) - 1))
            seen.append(within(IDLE_S, lambda: free_cpus() == all_cpus))
            other.release(last.key)

        watching = threading.Thread(target=let_go_when_all_is_free)
        watching.start()
        outcome = sweep(plan, store, NOWHERE)
        watching.join()
    assert seen == [True, True]
    assert sorted(outcome.done) == sorted(plan.stages)


@pytest.fixture
def two_cpus() -> Iterator[str]:
    """Run a real cluster of two CPUs; yield its address."""
    with real_cluster(num_cpus=2) as address:
        yield address


@pytest.mark.cluster
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "cpus", [1, 2]
)  # of a purification, so that there are processes of two kinds
def test_drivers_of_one_sweep_on_two_cpus_share_it_and_end(
    two_cpus: str, tmp_path: Path, count: int, cpus: int
) -> None:
    plan = idle_plan(20, 0.5, cpus_per_worker={"purify": cpus})
    drivers = []
    for number in range(count):
        folder = tmp_path / str(number)
        folder.mkdir()
        drivers.append(Driver(plan, NOWHERE, tmp_path / "store", two_cpus, folder))
        time.sleep(5)
    outcomes = [driver.outcome() for driver in drivers]
    assert [outcome["failed"] for outcome in outcomes] == [{}] * count
    done = [key for outcome in outcomes for key in outcome["done"]]
    assert sorted(done) == sorted(plan.stages)
    for outcome in outcomes:
        assert sorted(outcome["done"] + outcome["skipped"]) == sorted(plan.stages)
