"""Which deaths count: a killed process against `max_failures`, a lost node only after many."""

import pickle

from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from recipe_ray.distributed.losses import (
    MAX_NODE_LOSSES,
    Losses,
    WorkersLostError,
    is_node_loss,
    original,
    why_lost,
)

KILLED = ActorDiedError()
UNREACHABLE = ActorUnavailableError("Socket closed", b"0" * 16)


def in_a_task(error: Exception) -> RayTaskError:
    return RayTaskError("step", "traceback", error)


def test_a_killed_process_is_forgiven_as_often_as_the_launch_says() -> None:
    losses = Losses(max_failures=2)
    assert [losses.forgives("a", KILLED) for _ in range(4)] == [True, True, False, False]
    assert losses.forgives("b", KILLED)
    assert not Losses(max_failures=0).forgives("a", KILLED)


def test_lost_nodes_use_up_nothing_of_that() -> None:
    losses = Losses(max_failures=1)
    assert all(losses.forgives("a", UNREACHABLE) for _ in range(MAX_NODE_LOSSES))
    assert losses.forgives("a", KILLED)
    assert not losses.forgives("a", UNREACHABLE)  # by now it is the stage that takes the nodes


def test_why_is_one_line() -> None:
    assert why_lost(UNREACHABLE) == "its node was lost, or does not answer"
    assert why_lost(in_a_task(WorkersLostError("killed\nin many words"))) == "killed"
    assert why_lost(None) == "the process of the stage died"


def test_a_loss_is_recognised_through_tasks_and_pickles() -> None:
    node, process = WorkersLostError("gone", node=True), WorkersLostError("killed")
    for error, lost_a_node in ((node, True), (process, False), (UNREACHABLE, True)):
        assert is_node_loss(in_a_task(error)) == lost_a_node
    sent = original(pickle.loads(pickle.dumps(in_a_task(node))))
    assert isinstance(sent, WorkersLostError)
    assert (str(sent), sent.node) == ("gone", True)
    assert not is_node_loss(ValueError("node has died"))
