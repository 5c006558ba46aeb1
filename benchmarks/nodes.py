"""Grid throughput on 1, 2 and 4 simulated nodes: `nodes_4_efficiency` is to be 90 % or more.

Nodes are raylets on this machine with fake CPUs (`ray.cluster_utils.Cluster`); stages sleep, so
that the cores are not what limits. The head has no CPU, as in the files of `cluster/`. Every size
is a fresh process (`python -m benchmarks.nodes COUNT`) and runs as many stages a node. Throughput
is counted between the first third of the stages, when all nodes are at work, and the last few: the
processes of all nodes start on the same two cores here, which they do not elsewhere.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

from benchmarks.contenders import Figure
from benchmarks.faults import simulated
from benchmarks.grid_scale import worker_environment
from benchmarks.noop import NOWHERE, idle_plan
from recipe_ray.experiment.plan import Plan
from recipe_ray.schedule.sweep_progress import SweepEvent
from recipe_ray.store.store import Store

COUNTS = (1, 2, 4)
ROUNDS = 1 if os.environ.get("BENCHMARK_QUICK") else 3
CELLS_A_NODE = 20
SLEEP_S = 2.0


def figures() -> list[Figure]:
    """Measure the counts in turns."""
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(ROUNDS):
        for count in COUNTS:
            rates[count].append(_ask(count))
    found = [Figure(f"nodes_{count}", values, "stages/s") for count, values in rates.items()]
    for count in COUNTS[1:]:
        pairs = zip(rates[count], rates[1], strict=True)
        shares = [100 * many / (count * one) for many, one in pairs]
        found.append(Figure(f"nodes_{count}_efficiency", shares, "%"))
    return found


def _ask(count: int) -> float:
    command = [sys.executable, "-m", "benchmarks.nodes", str(count)]
    environment = {**worker_environment(), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def throughput(count: int, cells: int, sleep_s: float) -> float:
    """Return stages/s of sleeping fine-tunings on `count` nodes of one fake CPU each."""
    return _swept(count, idle_plan(cells, sleep_s)).rate()


def until_all_work(count: int, cells: int, sleep_s: float) -> dict[str, int]:
    """Return after how many ends of stages every node was at work, and how many stages there are.

    A grid begins with one stage, so that most nodes find work only later.
    """
    plan = idle_plan(cells, sleep_s)
    return {"stages": len(plan.stages), "all_at_work_after": _swept(count, plan).idle_ends}


def _swept(count: int, plan: Plan) -> "Ends":
    from recipe_ray.distributed.cluster import SETTINGS

    os.environ.update(SETTINGS)
    from recipe_ray.distributed.sweep import sweep

    ends = Ends(count)
    with simulated(num_nodes=count, cpus=1) as nodes, tempfile.TemporaryDirectory() as store:
        outcome = sweep(plan, Store.open(store), NOWHERE, address=nodes.address, on_event=ends.see)
    if outcome.failed:
        raise RuntimeError(f"a measured stage failed: {outcome.failed}")
    return ends


class Ends:
    """When stages ended, from when every node was first at work to when the first runs dry."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._running: set[str] = set()
        self.all_at_work = False
        self.idle_ends = 0  # before every node was at work
        self._ends: list[float] = []

    def see(self, event: SweepEvent) -> None:
        """Note what a sweep tells."""
        if event.kind == "started":
            self._running.add(event.stage.key)
            self.all_at_work |= len(self._running) == self._count
        if event.kind == "finished":
            self._running.discard(event.stage.key)
            if self.all_at_work:
                self._ends.append(time.monotonic())
            else:
                self.idle_ends += 1

    def rate(self) -> float:
        """Return stages/s."""
        last = len(self._ends) - self._count
        if last <= 0:
            raise RuntimeError("the nodes were never all at work for long enough: more cells")
        return last / (self._ends[last] - self._ends[0])


if __name__ == "__main__":
    nodes = int(sys.argv[1])
    sys.stdout.write(json.dumps(throughput(nodes, CELLS_A_NODE * nodes, SLEEP_S)) + "\n")
