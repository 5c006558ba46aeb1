"""Which stage starts next: what others wait for comes first and is not squeezed out."""

from collections.abc import Callable
from pathlib import Path
from time import process_time

from recipe_ray.data.sources import Locations
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.experiment.spec import Experiment, Launch
from recipe_ray.schedule.resources import Capacity, demand_of
from recipe_ray.schedule.stage_queue import StageQueue
from recipe_ray.stages.stage import Stage

LAUNCH = Launch(workers={"purify": 2})
TEXTS = {"name": "editorials"}


def plan() -> Plan:
    return wide_plan(1)


def wide_plan(seeds: int) -> Plan:
    """Return a plan of two PTMs, as they are and purified, each fine-tuned with so many seeds."""
    grid = {
        "models": ["minilm"],
        "attacks": ["none", {"name": "por", "corpus": TEXTS}],
        "defenses": ["none", "recipe"],
        "auxiliaries": [TEXTS],
        "tasks": ["snippets"],
        "seeds": list(range(seeds)),
    }
    values = {"name": "small", "pretraining": {"corpus": TEXTS}, "grid": grid}
    return make_plan(Experiment.model_validate(values), Locations(None, Path("/nowhere")))


def agenda_of(stages: dict[str, Stage], done: Callable[[Stage], bool], cpus: int) -> StageQueue:
    committed = [key for key, stage in stages.items() if done(stage)]
    return StageQueue(
        stages, committed, lambda s: demand_of(s, LAUNCH), lambda: Capacity(cpus, 0, cpus, 0)
    )


def test_a_stage_that_others_wait_for_is_not_squeezed_out_by_last_stages() -> None:
    found = plan()
    queue = agenda_of(found.stages, lambda s: s.name in ("pretrain", "backdoor"), cpus=3)
    first = queue.next()
    assert first is not None
    assert first.name == "purify"
    # one CPU is free and the second purify needs two: the fine-tunes that are ready must wait
    assert queue.next() is None
    queue.commit(first)
    second = queue.next()
    assert second is not None
    assert second.name == "purify"


def test_what_is_left_fills_the_cluster_once_nothing_larger_waits() -> None:
    found = plan()
    done = ("pretrain", "backdoor", "purify")
    queue = agenda_of(found.stages, lambda s: s.name in done, cpus=2)
    started = [queue.next() for _ in range(3)]
    assert [stage.name if stage else None for stage in started] == ["finetune", "finetune", None]


def test_a_stage_that_was_lost_comes_before_its_equals() -> None:
    found = plan()
    done = ("pretrain", "backdoor", "purify")
    queue = agenda_of(found.stages, lambda s: s.name in done, cpus=2)
    first, second = queue.next(), queue.next()
    assert first is not None
    queue.take_back(first)
    assert [queue.next(), queue.next()] == [first, None]
    assert queue.running == [second, first]


def test_a_failed_stage_takes_its_descendants_and_nothing_else() -> None:
    found = plan()
    queue = agenda_of(found.stages, lambda s: s.name == "pretrain", cpus=1)
    backdoor = queue.next()
    assert backdoor is not None
    assert backdoor.name == "backdoor"
    lost = {stage.label() for stage in queue.fail(backdoor)}
    assert lost == {"minilm-6.por.recipe", "minilm-6.por.snippets", "minilm-6.por.recipe.snippets"}
    assert not queue.is_over


def test_short_stages_share_a_trial_once_their_time_is_known() -> None:
    found = plan()
    done = ("pretrain", "backdoor", "purify")
    queue = agenda_of(found.stages, lambda s: s.name in done, cpus=1)
    (first,) = queue.next_batch()  # nobody knows yet how long it takes
    queue.commit(first, took_s=0.1)
    assert len(queue.next_batch()) == 1  # half of the three that are left


def test_a_batch_holds_the_room_of_one_stage_until_its_last_has_ended() -> None:
    queue = agenda_of(wide_plan(3).stages, lambda s: s.name != "finetune", cpus=1)
    (first,) = queue.next_batch()
    queue.commit(first, took_s=0.1)
    batch = queue.next_batch()
    assert len(batch) == 5
    assert queue.next() is None
    for stage in batch[:-1]:
        queue.commit(stage, took_s=0.1)
        assert queue.next() is None
    queue.commit(batch[-1], took_s=0.1)
    assert queue.next() is not None


def test_long_stages_stay_alone() -> None:
    queue = agenda_of(wide_plan(3).stages, lambda s: s.name != "finetune", cpus=1)
    (first,) = queue.next_batch()
    queue.commit(first, took_s=60)
    assert len(queue.next_batch()) == 1


def test_what_a_lost_batch_had_not_begun_waits_again() -> None:
    queue = agenda_of(wide_plan(3).stages, lambda s: s.name != "finetune", cpus=1)
    (first,) = queue.next_batch()
    queue.commit(first, took_s=0.1)
    lost, *others = queue.next_batch()
    for stage in others:
        queue.take_back(stage)
    assert queue.fail(lost) == []
    started = []
    while (stage := queue.next()) is not None:
        queue.commit(stage)
        started.append(stage.key)
    assert len(started) == 10
    assert lost.key not in started
    assert {stage.key for stage in others} <= set(started)


def test_ten_thousand_stages_take_no_more_time_each_than_a_hundred() -> None:
    small, large = (drained_in(count) for count in (100, 10_000))
    # quadratic in n it would be a hundred times as much for each
    assert large / 10_000 < 10 * small / 100


def drained_in(count: int) -> float:
    """Return the CPU seconds that an queue of so many fine-tunings takes to be worked off."""
    parent = next(s for s in plan().stages.values() if s.name == "purify")
    leaf = next(s for s in plan().stages.values() if s.parent == parent)
    stages: dict[str, Stage] = {parent.key: parent}
    for number in range(count):
        stage = leaf.model_copy(update={"seed": number})
        stage.__dict__["key"] = f"{number:016}"  # hashing is not what is measured
        stages[stage.key] = stage
    began = process_time()
    queue = agenda_of(stages, lambda s: s is parent, cpus=4)
    while not queue.is_over:
        while queue.next() is not None:
            pass
        for running in queue.running:
            queue.commit(running)
    return process_time() - began
