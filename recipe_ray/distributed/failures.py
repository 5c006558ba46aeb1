"""Processes and nodes that die: how to tell them apart, and how often a stage is started again.

A stage that raises has failed. If the process of a stage was killed, the stage is started again
from its checkpoint, as often as `launch.max_failures` says: it may be its own fault (memory). A
node that is lost or preempted takes innocent stages with it, so it is counted separately, up to a
higher bound.
"""

import re
import socket
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)

# a stage that loses this many nodes is probably the cause: it may take their memory
MAX_NODE_LOSSES = 10
_ANSWER_S = 3.0
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # the colours of Ray's messages
_LOST = (RayActorError, WorkerCrashedError, ObjectLostError, NodeDiedError, LocalRayletDiedError)
# a node reports a dead process at once; if one just stops answering, its node is lost, too
_NODE_LOST = (ActorUnavailableError, NodeDiedError, LocalRayletDiedError)


class WorkersLostError(RuntimeError):
    """Processes of a stage died; `node`: with a node that was lost.

    `no_room`: none died, but the cluster had no room for them, as others used it.
    """

    def __init__(self, message: str, node: bool = False, no_room: bool = False) -> None:
        super().__init__(message, node, no_room)
        self.message, self.node, self.no_room = message, node, no_room

    def __str__(self) -> str:
        return self.message


@dataclass
class LossCount:
    """How often each stage of a sweep was lost."""

    max_failures: int
    _processes: Counter[str] = field(default_factory=Counter)
    _nodes: Counter[str] = field(default_factory=Counter)

    def forgives(self, key: str, error: BaseException | None) -> bool:
        """Count the loss of a stage; tell whether it is to be started again."""
        cause = original(error) if error is not None else None
        if isinstance(cause, WorkersLostError) and cause.no_room:
            return True  # it waits, as a stage of one process waits for its CPU
        if error is not None and is_node_loss(error):
            self._nodes[key] += 1
            return self._nodes[key] <= MAX_NODE_LOSSES
        self._processes[key] += 1
        return self._processes[key] <= self.max_failures


def error_of(trial: Any) -> BaseException | None:
    """Return what ended a Tune trial, None if Tune has not kept it.

    `trial.get_pickled_error` reads the copy in the storage, which is made later.
    """
    path = trial.pickled_error_file
    if path is None or not Path(path).is_file():
        return None
    error: BaseException = cloudpickle.loads(Path(path).read_bytes())
    return error


def kill_process_of(trial: Any) -> None:
    """Kill the process in which a Tune trial runs, and with it the workers that it started."""
    actor = trial.temporary_state.ray_actor
    if actor is not None:
        ray.kill(actor)


def why_lost(error: BaseException | None) -> str:
    """Return in a few words why a stage was lost; Ray's own message fills a screen."""
    if error is None:
        return "the process of the stage died"
    if is_node_loss(error):
        return "its node was lost, or does not answer"
    said = [line for line in _ESCAPES.sub("", str(original(error))).splitlines() if line.strip()]
    if said and "creation task" in said[0]:  # a traceback, whose last line is the cause
        return f"its process could not start: {said[-1].strip()}"
    return said[0].strip() if said else type(error).__name__


def is_node_loss(error: BaseException) -> bool:
    """Tell whether an error says that a node was lost, not just a process on it."""
    cause = original(error)
    if isinstance(cause, WorkersLostError):
        return cause.node
    if type(cause).__name__ == "PreemptionError":  # of Ray Train, which takes 3 s to import
        return True
    if isinstance(cause, _NODE_LOST):
        return True
    if not isinstance(cause, RayActorError):
        return False
    # Ray says it only in words, except for a preemption that was announced
    return cause.preempted or "node has died" in str(cause)


def a_node_is_silent() -> bool:
    """Tell whether a node that Ray counts as alive does not answer: it has just been lost.

    Ray notices after seconds; the remaining workers report a broken connection at once.
    """
    list_nodes: Any = ray.nodes
    nodes = [node for node in list_nodes() if node["Alive"]]
    return not all(_answers(node["NodeManagerAddress"], node["NodeManagerPort"]) for node in nodes)


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=_ANSWER_S).close()
    except OSError:
        return False
    return True


def is_loss(cause: BaseException) -> bool:
    """Tell whether an error is about processes or what they held, not about their work."""
    return isinstance(cause, _LOST) or type(cause).__module__.startswith("ray.train.")


def original(error: BaseException) -> BaseException:
    """Return what was first raised in a task, actor or worker, under any number of other errors."""
    while True:
        inner = getattr(error, "health_check_failure", None)  # of a worker that Train looked for
        if isinstance(error, RayTaskError):
            inner = error.cause
        if not isinstance(inner, BaseException):
            return error
        error = inner
