"""Which deaths count: a killed process against `max_failures`, a lost node only after many."""

import pickle
from pathlib import Path

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from benchmarks.noop import NOWHERE, idle_plan
from recipe_ray.distributed.failures import (
    MAX_NODE_LOSSES,
    LossCount,
    WorkersLostError,
    is_node_loss,
    original,
    why_lost,
)
from recipe_ray.distributed.train import SweepContext
from recipe_ray.experiment.spec import Launch
from recipe_ray.store.store import Store

KILLED = ActorDiedError()
UNREACHABLE = ActorUnavailableError("Socket closed", b"0" * 16)


def in_a_task(error: Exception) -> RayTaskError:
    return RayTaskError("step", "traceback", error)


def test_a_killed_process_is_forgiven_as_often_as_the_launch_says() -> None:
    losses = LossCount(max_failures=2)
    assert [losses.forgives("a", KILLED) for _ in range(4)] == [True, True, False, False]
    assert losses.forgives("b", KILLED)
    assert not LossCount(max_failures=0).forgives("a", KILLED)


def test_lost_nodes_use_up_nothing_of_that() -> None:
    losses = LossCount(max_failures=1)
    assert all(losses.forgives("a", UNREACHABLE) for _ in range(MAX_NODE_LOSSES))
    assert losses.forgives("a", KILLED)
    assert not losses.forgives("a", UNREACHABLE)  # by now it is the stage that takes the nodes


def test_a_group_that_found_no_room_waits_and_uses_up_nothing() -> None:
    losses = LossCount(max_failures=0)
    full = in_a_task(WorkersLostError("the cluster had no room", no_room=True))
    assert all(losses.forgives("a", full) for _ in range(2 * MAX_NODE_LOSSES))
    assert not losses.forgives("a", KILLED)


def test_why_is_one_line() -> None:
    assert why_lost(UNREACHABLE) == "its node was lost, or does not answer"
    assert why_lost(in_a_task(WorkersLostError("killed\nin many words"))) == "killed"
    assert why_lost(None) == "the process of the stage died"
    creation = WorkersLostError(
        "The actor died because of an error raised in its creation task, \x1b[36mray::X\x1b[39m\n"
        "  File 'x.py', line 3\nModuleNotFoundError: No module named 'mine'\n"
    )
    assert why_lost(in_a_task(creation)) == (
        "its process could not start: ModuleNotFoundError: No module named 'mine'"
    )


def test_a_loss_is_recognised_through_tasks_and_pickles() -> None:
    node, process = WorkersLostError("gone", node=True), WorkersLostError("killed")
    for error, lost_a_node in ((node, True), (process, False), (UNREACHABLE, True)):
        assert is_node_loss(in_a_task(error)) == lost_a_node
    sent = original(pickle.loads(pickle.dumps(in_a_task(node))))
    assert isinstance(sent, WorkersLostError)
    assert (str(sent), sent.node) == ("gone", True)
    assert not is_node_loss(ValueError("node has died"))


def test_a_preempted_group_is_counted_by_us_alone_and_as_a_lost_node(tmp_path: Path) -> None:
    # imported here: Ray Train takes seconds
    from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
    from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision
    from ray.train.v2.api.exceptions import PreemptionError
    from ray.train.v2.api.preemption import PreemptionInfo

    from recipe_ray.distributed import train

    stage = next(iter(idle_plan(20).stages.values()))
    work = SweepContext({}, Store.open(tmp_path), NOWHERE, Launch())
    preempted = PreemptionError(PreemptionInfo(None, {"node": [0]}))
    policy = DefaultFailurePolicy(train._run_config(stage, work, str(tmp_path), ()).failure_config)
    assert policy.make_decision(preempted) == FailureDecision.RAISE
    cause = train._cause(preempted)
    assert is_node_loss(cause)
    assert LossCount(max_failures=0).forgives(stage.key, in_a_task(cause))
