"""A search on a real Ray: the worst are stopped, the best confirmed, nothing is done twice.

The purifications are real and tiny; looks give scores known before (`tiny_search.StubLook`).
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from tiny_search import EPOCHS, STUB_ACC, stub_masr, tiny_search, with_stub_looks

from benchmarks.full_grid import beside_full_grid, grid_plan
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.search import Settings, drawn_at_random
from recipe_ray.experiment.search_plan import Record, SearchPlan
from recipe_ray.report.load import recorded
from recipe_ray.report.sections import sections
from recipe_ray.store.store import Store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
TRIALS = 8


@dataclass
class Searched:
    """A search that was run, and what it told."""

    plan: SearchPlan
    store: Store
    places: Locations
    outcome: Any
    told: list[Any] = field(default_factory=list)


def run(plan: SearchPlan, store: Store, places: Locations) -> tuple[Any, list[Any]]:
    from recipe_ray.distributed.search import SearchWatcher, search

    told: list[Any] = []
    watcher = SearchWatcher(on_stage=told.append, on_candidate=told.append)
    return search(plan, store, places, watcher=watcher), told


@pytest.fixture(scope="module")
def searched(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder = tmp_path_factory.mktemp("search")
    plan = with_stub_looks(tiny_search(folder, trials=TRIALS))
    store, places = Store.open(folder / "store"), Locations(None, folder)
    return Searched(plan, store, places, *run(plan, store, places))


def score(settings: Settings) -> float:
    return STUB_ACC - stub_masr(settings.weight_factor)


def courses(one: Searched) -> dict[Settings, tuple[int, str]]:
    """Return how long each candidate went and how it ended, as the store has it."""
    return dict(Record.load(one.plan, one.store, 0.9).ended)


def test_the_worst_are_stopped_and_the_best_go_all_the_way(searched: Searched) -> None:
    ended = courses(searched)
    assert set(ended) == set(drawn_at_random(searched.plan.search))
    best = max(ended, key=score)
    assert ended[best] == (EPOCHS, "finished")
    stopped = [one for one, (epochs, how) in ended.items() if how == "stopped" and epochs < EPOCHS]
    assert stopped
    finished = [one for one, (_, how) in ended.items() if how == "finished"]
    assert mean(map(score, stopped)) < mean(map(score, finished))
    assert sum(epochs for epochs, _ in ended.values()) < TRIALS * EPOCHS


def test_stopped_candidates_leave_nothing_behind(searched: Searched) -> None:

    import ray

    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU", 0) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 3
    assert searched.store.progress() == {}
    purifications = [searched.plan.candidate(one).purify for one in courses(searched)]
    assert all(searched.store.read_checkpoint(one.key) is None for one in purifications)
    assert not any(searched.store.has(one.artifact) for one in purifications)


def test_survivors_are_confirmed_on_test_data_and_every_seed(searched: Searched) -> None:
    best = searched.outcome.survivors
    assert len(best) == 1
    rows = searched.store.results("tiny.confirm").to_pylist()
    found = {(r["weight_factor"], r["seed"]) for r in rows if r["metric"] == "masr"}
    factors = {one.weight_factor for one in best}
    assert found == {(factor, seed) for factor in {None, *factors} for seed in (0, 1)}


def test_every_look_is_in_the_results_with_its_score(searched: Searched) -> None:
    rows = [r for r in searched.store.results("tiny").to_pylist() if r["metric"] == "score"]
    assert len(rows) == sum(epochs for epochs, _ in courses(searched).values())
    for row in rows:
        wanted = score(Settings(row["weight_factor"]))
        assert row["value"] == pytest.approx(wanted)
    summary = sections(recorded(str(searched.store.uri)), "tiny")[0].search
    assert summary is not None
    assert len(summary.candidates) == TRIALS


def test_started_again_it_does_nothing(searched: Searched) -> None:
    before = {key: searched.store.manifest(a)["time"] for key, a in _committed(searched.store)}
    from recipe_ray.distributed.search import CandidateEvent

    outcome, told = run(searched.plan, searched.store, searched.places)
    assert {event.kind for event in told} == {"skipped"}
    assert sum(isinstance(event, CandidateEvent) for event in told) == TRIALS
    assert outcome == searched.outcome
    assert {k: searched.store.manifest(a)["time"] for k, a in _committed(searched.store)} == before


def test_the_benchmark_runs_the_full_grid_beside_it_and_no_look_again(searched: Searched) -> None:
    places, store = searched.places, searched.store
    there = {key: store.manifest(one)["time"] for key, one in _committed(store)}
    grid = grid_plan(searched.plan, [0.1, 1.0], [0], places)
    compared = beside_full_grid(searched.plan, grid, store, places)
    looks = sum(epochs for epochs, _ in courses(searched).values())
    assert (compared.search_epochs, compared.all_epochs) == (looks, TRIALS * EPOCHS)
    assert (compared.grid_epochs, compared.grid_finetunings) == (2 * EPOCHS, 2)
    assert compared.search_best_score == pytest.approx(score(searched.outcome.survivors[0]))
    assert compared.grid_s > 0
    now = {key: store.manifest(one)["time"] for key, one in _committed(store)}
    assert {key: now[key] for key in there} == there


def test_a_purification_that_diverges_is_the_worst_and_costs_nothing_else(
    ray_session: None, tmp_path: Path
) -> None:
    # the largest learning rates of the range break the loss
    space = {"learning_rate": {"low": 1e-3, "high": 1e30}}
    plan = with_stub_looks(tiny_search(tmp_path, trials=4, space=space))
    store, places = Store.open(tmp_path / "store"), Locations(None, tmp_path)
    outcome, _ = run(plan, store, places)
    endings = {how for _, how in Record.load(plan, store, 0.9).ended.values()}
    assert "diverged" in endings
    lost = [s for s, (_, how) in Record.load(plan, store, 0.9).ended.items() if how == "diverged"]
    assert not set(lost) & set(outcome.survivors)


def test_candidates_on_two_workers_take_looks_and_leave_their_cores_to_the_next(
    tmp_path: Path,
) -> None:
    # in a Ray of its own: one with the dashboard, which finds what a stopped group leaves behind
    changes = {"trials": 2, "launch": {"workers": {"purify": 2}}}
    with _driver(tmp_path, changes) as driver:
        driver.communicate(timeout=800)
    assert driver.returncode == 0
    plan = with_stub_looks(tiny_search(tmp_path, **changes))
    store = Store.open(tmp_path / "store")
    ended = Record.load(plan, store, 0.9).ended
    assert set(ended) == set(drawn_at_random(plan.search))
    assert (EPOCHS, "finished") in ended.values()
    rows = [row for row in store.results("tiny").to_pylist() if row["metric"] == "score"]
    assert len(rows) == sum(epochs for epochs, _ in ended.values())
    assert all(row["value"] == pytest.approx(score(Settings(row["weight_factor"]))) for row in rows)


def test_optuna_draws_from_the_space_and_is_asked_again_for_the_rest(
    ray_session: None, tmp_path: Path
) -> None:
    few = with_stub_looks(tiny_search(tmp_path, sampling="optuna", trials=3))
    store, places = Store.open(tmp_path / "store"), Locations(None, tmp_path)
    run(few, store, places)
    first = dict(Record.load(few, store, 0.9).ended)
    assert len(first) == 3
    assert all(0.01 <= one.weight_factor <= 10 for one in first)
    more = with_stub_looks(tiny_search(tmp_path, sampling="optuna", trials=5))
    _, told = run(more, store, places)
    after = Record.load(more, store, 0.9).ended
    assert len(after) == 5
    assert {one: after[one] for one in first} == first
    looked = [e.course.candidate.settings for e in told if e.kind == "looked"]
    assert not set(looked) & set(first)


_DRIVER = """
import json
import sys
from pathlib import Path
from tiny_search import tiny_search, with_stub_looks
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.search import SearchWatcher, search
from recipe_ray.store.store import Store
folder = Path(sys.argv[1])
plan = with_stub_looks(tiny_search(folder, **json.loads(sys.argv[2])))
def tell(event):
    print(event.kind, flush=True)
search(plan, Store.open(folder / "store"), Locations(None, folder),
       watcher=SearchWatcher(on_candidate=tell, on_wait=lambda driver: print("waits", flush=True)))
"""


def test_after_kill_9_no_look_is_taken_twice(ray_session: None, tmp_path: Path) -> None:
    from recipe_ray.distributed.search import CandidateEvent

    plan = with_stub_looks(tiny_search(tmp_path))
    _kill_after(3, tmp_path)
    store = Store.open(tmp_path / "store")
    there = {key: store.manifest(a)["time"] for key, a in _committed(store)}
    ended = dict(Record.load(plan, store, 0.9).ended)
    outcome, told = run(plan, store, Locations(None, tmp_path))
    assert len(outcome.survivors) == 1
    now = {key: store.manifest(a)["time"] for key, a in _committed(store)}
    assert {key: now[key] for key in there} == there
    after = Record.load(plan, store, 0.9).ended
    assert {one: after[one] for one in ended} == ended
    begun = [e for e in told if isinstance(e, CandidateEvent) and e.kind == "started"]
    assert not {event.course.candidate.settings for event in begun} & set(ended)


# two Rays: who gets a claim is raced for in `test_claims.py`, who waits in `test_search_drivers.py`
@pytest.mark.cluster
def test_two_drivers_at_once_train_each_candidate_once(tmp_path: Path) -> None:
    plan = with_stub_looks(tiny_search(tmp_path))
    with _driver(tmp_path, {}) as one, _driver(tmp_path, {}) as two:
        told = [driver.communicate(timeout=800)[0].split() for driver in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0)
    ended = Record.load(plan, Store.open(tmp_path / "store"), 0.9).ended
    assert len(ended) == plan.search.trials
    looks = [kinds.count("looked") for kinds in told]
    assert sorted(looks) == [0, sum(epochs for epochs, _ in ended.values())]
    idle = told[looks.index(0)]
    assert idle == ["waits", *["skipped"] * plan.search.trials]


def test_a_driver_that_lost_its_candidates_stops_them_and_goes_on_when_they_are_free(
    ray_session: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from recipe_ray.distributed.search import SearchWatcher, search

    plan = with_stub_looks(tiny_search(tmp_path))
    store, told = Store.open(tmp_path / "store"), list[str]()
    other = store.claims(60)
    stopped: list[bool] = []

    def take_over(event: Any) -> None:
        told.append(event.kind)
        if told.count("looked") == 2 and not stopped:
            stopped.append(False)
            # what a driver does with the claims of one that was silent for a lease
            next((tmp_path / "store" / "claims").glob(f"{plan.key}.*")).unlink()
            other.__enter__()
            assert other.take(plan.key)

    def let_go(driver: str) -> None:
        told.append("waits")
        assert driver == other.driver
        time.sleep(3)
        stopped.append(store.progress() == {} or _still(store))
        other.__exit__(None, None, None)

    watcher = SearchWatcher(on_candidate=take_over, on_wait=let_go)
    outcome = search(plan, store, Locations(None, tmp_path), watcher=watcher)
    assert len(outcome.survivors) == 1
    assert stopped == [False, True]
    assert "taken over by another driver" in caplog.text
    ended = Record.load(plan, store, 0.9).ended
    assert len(ended) == plan.search.trials
    assert told.count("ended") + told.count("skipped") == plan.search.trials
    assert told.count("looked") == sum(epochs for epochs, _ in ended.values())


def _still(store: Store) -> bool:
    before = store.progress()
    time.sleep(3)  # a stage that runs writes its note every two seconds
    return store.progress() == before


def _committed(store: Store) -> list[tuple[str, Any]]:
    return sorted(store.committed().items())


def _driver(folder: Path, changes: dict[str, Any]) -> subprocess.Popen[str]:
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(folder), json.dumps(changes)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


def _kill_after(looks: int, folder: Path) -> None:
    with _driver(folder, {}) as driver:
        assert driver.stdout is not None
        seen = 0
        for line in driver.stdout:
            seen += line.strip() == "looked"
            if seen == looks:
                driver.send_signal(signal.SIGKILL)
                return
    raise AssertionError("the driver ended before enough looks were taken")
