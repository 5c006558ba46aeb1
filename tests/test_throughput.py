"""Speed and time to go: from what was seen of a stage, never from what it did before."""

import pytest
from sweep_samples import Clock

from recipe_ray.learn.progress import Meter, Observers, Progress, Sometimes, Throughput


def test_a_resumed_stage_is_measured_from_where_it_went_on() -> None:
    clock = Clock()
    meter = Meter(clock)
    clock.now += 5  # a model is loaded
    first = meter(Progress("purify", 901, 1000, samples=32))
    assert (first.samples_per_s, first.left_s) == (None, None)  # 901 steps in 5 s would be wrong
    clock.now += 10
    second = meter(Progress("purify", 906, 1000, samples=32))
    assert second.left_s == pytest.approx(94 * 2)  # 2 s a step
    assert second.elapsed_s == 15


def test_speed_counts_the_samples_of_every_step() -> None:
    clock = Clock()
    meter = Meter(clock)
    for step, samples in enumerate((10, 20, 30, 40), 1):
        clock.now += 0.25
        last = meter(Progress("probe", step, 8, samples=samples))
    assert last.samples_per_s == pytest.approx((20 + 30 + 40) / 0.75)


def test_the_speed_is_that_of_the_last_steps() -> None:
    clock = Clock()
    meter = Meter(clock)
    for step in range(1, 401):
        clock.now += 0.1 if step <= 200 else 1.0  # somebody else began to use the machine
        last = meter(Progress("purify", step, 500, samples=1))
    assert last.left_s == pytest.approx(100, rel=0.05)


def test_a_new_phase_is_measured_anew() -> None:
    clock = Clock()
    meter = Meter(clock)
    for step in range(1, 4):
        clock.now += 1
        meter(Progress("activations", step, 3, samples=8))
    clock.now += 100
    assert meter(Progress("purify", 1, 10, samples=8)).left_s is None
    clock.now += 2
    assert meter(Progress("purify", 2, 10, samples=8)).left_s == pytest.approx(16)


def test_a_note_gives_back_what_was_noted_and_older_ones_lack_the_speed() -> None:
    advance = Throughput(Progress("poison", 3, 9, {"mlm": 2.5}, 4), 12.5, 3.0, 7.0)
    note = {"time": "now", "kind": "backdoor", **advance.to_note()}
    assert Throughput.from_note(note) == advance
    for name in ("samples", "samples_per_s", "left_s"):
        del note[name]
    assert Throughput.from_note(note) == Throughput(Progress("poison", 3, 9, {"mlm": 2.5}), 12.5)


def test_all_observers_see_the_same_advance() -> None:
    seen: list[list[Throughput]] = [[], []]
    tell = Observers(seen[0].append, seen[1].append)
    tell(Progress("purify", 1, 2))
    tell(Progress("purify", 2, 2))
    assert seen[0] == seen[1]
    assert [advance.progress.step for advance in seen[0]] == [1, 2]


def test_what_happens_sometimes_happens_first_then_seldom_and_at_the_end() -> None:
    clock = Clock()
    sometimes = Sometimes(1.0, clock)
    due = []
    for step in range(1, 13):
        due.append(sometimes.due(Progress("purify", step, 12)))
        clock.now += 0.25
    assert [number for number, is_due in enumerate(due, 1) if is_due] == [1, 5, 9, 12]
