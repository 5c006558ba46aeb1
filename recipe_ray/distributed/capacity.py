"""What the cluster has room for: its living nodes or, where it grows by itself, what it may become.

The open-source autoscalers of Ray 2.60 tell a driver no maximum, so `launch.grow_to` does. They
start nodes for placement groups that find no room: those of the trials, and those of Ray Train's
workers. Counting only living nodes would never make one wait, and so the cluster never grow.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray

from recipe_ray.experiment.demand import Capacity
from recipe_ray.experiment.spec import Growth

_ASK_EVERY_S = 1.0  # the agenda asks at every turn of Tune, an answer takes a request


def living_nodes() -> list[Mapping[str, float]]:
    """Return the resources of every node that is alive."""
    list_nodes: Any = ray.nodes
    return [node["Resources"] for node in list_nodes() if node["Alive"]]


class ClusterCapacity:
    """CPUs and GPUs of the cluster, asked for at most once a second."""

    def __init__(
        self,
        growth: Growth | None,
        nodes: Callable[[], Iterable[Mapping[str, float]]] = living_nodes,
    ) -> None:
        self._growth = growth
        self._nodes = nodes
        self._asked = float("-inf")
        self._latest = Capacity(0, 0, 0, 0)

    def __call__(self) -> Capacity:
        """Return what stages may count on."""
        now = time.monotonic()
        if now - self._asked >= _ASK_EVERY_S:
            self._asked = now
            self._latest = room(self._nodes(), self._growth)
        return self._latest


def room(nodes: Iterable[Mapping[str, float]], growth: Growth | None) -> Capacity:
    """Return the sums and maxima over nodes, or over those that may come where they are more."""
    listed = list(nodes)
    cpus = [float(node.get("CPU", 0)) for node in listed]
    gpus = [float(node.get("GPU", 0)) for node in listed]
    now = Capacity(sum(cpus), sum(gpus), max(cpus, default=0), max(gpus, default=0))
    if growth is None:
        return now
    return Capacity(
        max(now.cpus, growth.nodes * growth.cpus),
        max(now.gpus, growth.nodes * growth.gpus),
        max(now.node_cpus, growth.cpus),
        max(now.node_gpus, growth.gpus),
    )
