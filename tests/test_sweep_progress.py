"""How far a sweep is said to be, and when it is said to end."""

from pathlib import Path

import pytest
from store_samples import driven, leave_lease
from sweep_samples import Clock, kinds, plan_of

from recipe_ray.distributed.monitor import Monitor
from recipe_ray.experiment.plan import Plan
from recipe_ray.learn.progress import Progress, Throughput
from recipe_ray.schedule.sweep_progress import (
    DriverNotes,
    EventKind,
    SweepEvent,
    SweepProgress,
    stalled_s,
)
from recipe_ray.stages.stage import Stage
from recipe_ray.store.store import Store


class Sweep:
    """Feeds a tally with the events of a sweep under a clock that the test moves."""

    def __init__(self, plan: Plan, done: list[str] | None = None) -> None:
        self.clock = Clock()
        self.tally = SweepProgress(plan, done or [], self.clock)
        self._since: dict[str, float] = {}

    def tell(self, kind: EventKind, stage: Stage, left_s: float | None = None) -> None:
        if kind == "started":
            self._since[stage.key] = self.clock.now
        wall_s = self.clock.now - self._since.get(stage.key, self.clock.now)
        advance = (
            Throughput(Progress("purify", 1, 2), left_s=left_s) if left_s is not None else None
        )
        self.tally.see(SweepEvent(kind, stage, wall_s, advance))


def test_stages_and_cells_are_counted_by_state() -> None:
    plan = plan_of([0])
    (backdoor,), (purify,) = kinds(plan, "backdoor"), kinds(plan, "purify")
    sweep = Sweep(plan, [backdoor.key])
    assert sweep.tally.states() == {"waiting": 3, "running": 0, "done": 1, "failed": 0}
    undefended, purified = (cell.last for cell in plan.cells)
    for stage in (purify, undefended):
        sweep.tell("started", stage)
    assert [stage for stage, _ in sweep.tally.running()] == [purify, undefended]
    sweep.tell("finished", undefended)
    sweep.tell("failed", purify)
    sweep.tell("failed", purified)  # because its parent did
    assert sweep.tally.states() == {"waiting": 0, "running": 0, "done": 2, "failed": 2}
    assert (sweep.tally.cells_done, sweep.tally.cells) == (1, 2)


def test_what_another_driver_made_meanwhile_is_done() -> None:
    plan = plan_of([0])
    sweep = Sweep(plan)
    sweep.tell("skipped", kinds(plan, "backdoor")[0])
    sweep.tell("skipped", plan.cells[0].last)
    assert sweep.tally.states() == {"waiting": 2, "running": 0, "done": 2, "failed": 0}
    assert sweep.tally.cells_done == 1


def test_nothing_is_said_of_the_end_while_a_kind_of_stage_is_unknown() -> None:
    plan = plan_of([0])
    sweep = Sweep(plan)
    (backdoor,) = kinds(plan, "backdoor")
    sweep.tell("started", backdoor)
    sweep.clock.now += 60
    sweep.tell("finished", backdoor)
    assert sweep.tally.left_s() is None


def test_two_stages_side_by_side_halve_the_time_to_go() -> None:
    plan = plan_of(list(range(8)))
    (backdoor,) = kinds(plan, "backdoor")
    sweep = Sweep(plan, [backdoor.key, *(stage.key for stage in kinds(plan, "purify"))])
    waiting = kinds(plan, "finetune")
    assert len(waiting) == 16
    for pair in (waiting[:2], waiting[2:4]):
        for stage in pair:
            sweep.tell("started", stage)
        sweep.clock.now += 100
        for stage in pair:
            sweep.tell("finished", stage)
    assert sweep.tally.left_s() == pytest.approx(12 * 100 / 2)
    for stage in waiting[4:6]:
        sweep.tell("started", stage)
    sweep.clock.now += 40
    assert sweep.tally.left_s() == pytest.approx((12 * 100 - 2 * 40) / 2)


def test_a_chain_is_not_said_to_run_side_by_side() -> None:
    plan = plan_of(list(range(3)))
    sweep = Sweep(plan)
    (backdoor,), purifies = kinds(plan, "backdoor"), kinds(plan, "purify")
    sweep.tell("started", backdoor)
    sweep.clock.now += 10
    sweep.tell("finished", backdoor)
    last = [cell.last for cell in plan.cells if cell.last.parent in purifies]
    others = [cell.last for cell in plan.cells if cell.last.parent == backdoor]
    started = [*purifies[:2], *others]
    for stage in started:
        sweep.tell("started", stage)
    sweep.clock.now += 100
    for stage in [*started]:
        sweep.tell("finished", stage)
    for stage in last[:2]:
        sweep.tell("started", stage)
    sweep.clock.now += 20
    for stage in last[:2]:
        sweep.tell("finished", stage)
    # one purification (100 s) and its fine-tuning (20 s) are left, on room for four
    assert sweep.tally.left_s() == pytest.approx(120)


def test_a_running_stage_that_is_slower_than_its_like_is_believed() -> None:
    plan = plan_of([0, 1])
    (backdoor,) = kinds(plan, "backdoor")
    done = [backdoor.key, *(s.key for s in kinds(plan, "purify")), plan.cells[0].last.key]
    sweep = Sweep(plan, done)
    first, *others = [s for s in kinds(plan, "finetune") if s.key not in done]
    sweep.tell("started", first)
    sweep.clock.now += 50
    sweep.tell("finished", first)
    for stage in others[:-1]:
        sweep.tell("started", stage)
        sweep.tell("finished", stage)
    sweep.tell("started", others[-1])
    sweep.clock.now += 60
    sweep.tell("progress", others[-1], left_s=500.0)
    assert sweep.tally.left_s() == pytest.approx(500)


def test_a_drivers_lease_is_there_while_it_drives_and_tells_how_far_it_is(tmp_path: Path) -> None:
    plan, store = plan_of([0]), Store.open(tmp_path)
    events: list[SweepEvent] = []
    driver = Monitor(plan, [], events.append)
    (backdoor,) = kinds(plan, "backdoor")
    driver.on_event(SweepEvent("started", backdoor))
    with store.claims(60, driver.note):
        (note,) = DriverNotes(store).living()
        assert note["experiment"] == "small"
        assert (note["states"]["waiting"], note["states"]["running"]) == (3, 1)
        with store.claims(60, driver.note):  # another one on the same store
            assert len(DriverNotes(store).living()) == 2
    assert DriverNotes(store).all() == []
    assert [event.kind for event in events] == ["started"]


def test_leases_of_dead_drivers_are_not_shown_and_go_when_the_next_one_starts(
    tmp_path: Path,
) -> None:
    store = Store.open(tmp_path)
    notes = DriverNotes(store)
    for driver, experiment in (("a", "small"), ("b", "other")):
        path = leave_lease(store, driver, driven(experiment))
        path.write_text(path.read_text().replace('"time": "20', '"time": "19'))
    assert notes.living() == []
    with store.claims(60, lambda: driven("small")) as claims:
        assert [note["driver"] for note in notes.all()] == [claims.driver]


def test_a_sweep_in_which_nothing_runs_while_stages_wait_says_for_how_long() -> None:
    plan = plan_of([0])
    sweep = Sweep(plan)
    first, second, *_ = plan.stages.values()
    sweep.clock.now += 30
    assert sweep.tally.idle_s() == 30
    sweep.tell("started", first)
    sweep.clock.now += 500
    assert sweep.tally.idle_s() == 0
    sweep.tell("finished", first)
    sweep.tell("elsewhere", second)
    sweep.clock.now += 70
    assert sweep.tally.idle_s() == 70
    for stage in list(plan.stages.values())[1:]:
        sweep.tell("skipped", stage)
    assert sweep.tally.idle_s() == 0


def test_a_store_is_stalled_if_no_living_driver_runs_anything() -> None:
    idle, busy, older = {"idle_s": 90.0}, {"idle_s": 0.0}, {"states": {}}
    assert stalled_s([idle, {"idle_s": 75.0}]) == 75
    assert stalled_s([idle, busy]) is stalled_s([idle, older]) is stalled_s([]) is None
    assert stalled_s([{"idle_s": 20.0}]) is None
