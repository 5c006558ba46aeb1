"""Two drivers with one plan: what one is at the other leaves alone, and then uses."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from store_samples import filled
from sweep_samples import agenda_of, plan

from recipe_ray.schedule.shared_queue import SharedQueue
from recipe_ray.schedule.stage_queue import StageQueue
from recipe_ray.stages.run import failure_note
from recipe_ray.stages.stage import Stage
from recipe_ray.store.claims import Claims
from recipe_ray.store.store import Store


@dataclass
class Driver:
    """A driver without Ray: its queue, its claims, and what it heard."""

    queue: StageQueue
    claims: Claims
    heard: list[tuple[str, str]] = field(default_factory=list)

    def left_to(self, stage: Stage, driver: str) -> None:
        self.heard.append(("left", stage.name))

    def taken_over(self, stage: Stage) -> None:
        self.heard.append(("taken over", stage.name))

    def committed_elsewhere(self, stage: Stage) -> None:
        self.queue.commit(stage)
        self.heard.append(("committed", stage.name))

    def failed_elsewhere(self, stage: Stage, message: str) -> None:
        self.queue.fail(stage)
        self.heard.append(("failed", message))


@dataclass
class Pair:
    """Two drivers on one store."""

    store: Store
    one: SharedQueue
    two: SharedQueue
    heard: list[tuple[str, str]]  # by the second
    folder: Path


@pytest.fixture
def pair(tmp_path: Path) -> "Pair":
    """Return two drivers that have the same six stages to do, on eight CPUs each."""
    store, stages = Store.open(tmp_path), plan().stages
    both = []
    for _ in range(2):
        queue = agenda_of(stages, lambda stage: stage.name == "pretrain", cpus=8)
        driver = Driver(queue, store.claims(60))
        both.append((SharedQueue(queue, driver.claims, store, driver, look_every_s=0), driver))
        driver.claims.renew()
    return Pair(store, both[0][0], both[1][0], both[1][1].heard, tmp_path)


def started(neighbours: SharedQueue) -> list[Stage]:
    """Return all stages that may start now."""
    found = []
    while batch := neighbours.next_batch():
        found += batch
    return found


def test_no_stage_is_given_to_both(pair: Pair) -> None:
    first = started(pair.one)
    assert {stage.name for stage in first} == {"backdoor", "purify", "finetune"}
    assert started(pair.two) == []
    assert not pair.two.is_over
    assert pair.heard == [("left", stage.name) for stage in first]


def test_what_the_other_commits_is_done_and_its_children_may_start(pair: Pair) -> None:
    backdoor = started(pair.one)[0]
    assert backdoor.name == "backdoor"
    assert started(pair.two) == []
    pair.store.commit(backdoor.artifact, filled(pair.store.local_scratch()), {}, None)
    pair.one.claims.release(backdoor.key)
    children = started(pair.two)
    assert {stage.parent for stage in children} == {backdoor}
    assert ("committed", "backdoor") in pair.heard
    assert started(pair.one) == []  # its own queue has not heard of its commit yet


def test_what_fails_for_the_other_fails_here_with_its_descendants(pair: Pair) -> None:
    backdoor = started(pair.one)[0]
    started(pair.two)
    pair.store.record_failure(backdoor.artifact, failure_note(RuntimeError("too large")))
    pair.one.claims.release(backdoor.key)
    assert started(pair.two) == []
    assert ("failed", "RuntimeError: too large") in pair.heard
    assert backdoor.key not in {stage.key for stage in pair.two.queue.elsewhere}


def test_what_the_other_gives_up_is_taken_over(pair: Pair) -> None:
    theirs = started(pair.one)
    assert started(pair.two) == []
    pair.one.claims.release(theirs[0].key)
    assert started(pair.two) == [theirs[0]]


def test_a_driver_that_others_took_for_dead_stops_what_it_runs(pair: Pair) -> None:
    mine = started(pair.two)
    stage = mine[0]
    # what a driver does with the claims of one that was silent for a lease
    (pair.folder / "claims" / f"{stage.key}.{pair.two.claims.driver}").unlink()
    assert started(pair.one) == [stage]
    assert started(pair.two) == []
    assert pair.heard == [("taken over", stage.name)]
    assert not pair.two.queue.is_running(stage.key)
    assert all(pair.two.queue.is_running(other.key) for other in mine[1:])
    pair.store.commit(stage.artifact, filled(pair.store.local_scratch()), {}, None)
    pair.one.claims.release(stage.key)
    started(pair.two)
    assert pair.heard[1:] == [("committed", stage.name)]


def test_a_failure_of_before_is_tried_again(tmp_path: Path) -> None:
    store, stages = Store.open(tmp_path), plan().stages
    backdoor = next(stage for stage in stages.values() if stage.name == "backdoor")
    store.record_failure(backdoor.artifact, failure_note(RuntimeError("yesterday")))
    queue = agenda_of(stages, lambda stage: stage.name == "pretrain", cpus=8)
    with store.claims(60) as claims:
        neighbours = SharedQueue(queue, claims, store, Driver(queue, claims), look_every_s=0)
        assert neighbours.next_batch() == [backdoor]


def test_a_damaged_failure_note_of_another_driver_is_no_failure(pair: Pair) -> None:
    backdoor = started(pair.one)[0]
    started(pair.two)
    note = pair.folder / "failures" / f"{backdoor.key}.json"
    note.parent.mkdir()
    note.write_text('{"error": "cut sho')
    pair.one.claims.release(backdoor.key)
    assert started(pair.two) == [backdoor]
