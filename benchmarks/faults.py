"""What a sweep is hurt with: simulated nodes, drivers in processes of their own, ways to kill.

A simulated node is a raylet of its own on this machine. Only processes of the given cluster and
store are ever touched: workers are found by the names of their scratch folders.
"""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recipe_ray.base.process import Process
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.plan import Plan
from recipe_ray.store.store import Store

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 300.0
_OBJECTS = 100 * 2**20  # bytes a node
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ONCE = {"wall_s", "time", "git_commit", "versions"}  # columns that differ between two runs


class Nodes:
    """A cluster whose nodes are simulated; the head trains nothing."""

    def __init__(self, num_nodes: int, cpus: int, folder: str) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": folder}
        head["object_store_memory"] = _OBJECTS
        self._cpus = cpus
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        for _ in range(num_nodes):
            self.add()

    def add(self) -> None:
        """Start one more node; on the main thread only."""
        self._cluster.add_node(num_cpus=self._cpus, object_store_memory=_OBJECTS)

    def lose(self, node: Any) -> None:
        """Kill a node's processes at once, as a machine dies."""
        self._cluster.remove_node(node, allow_graceful=False)

    def preempt(self, node: Any) -> None:
        """Ask a node to end, as a cloud does."""
        node.all_processes["raylet"][0].process.terminate()
        self._cluster.remove_node(node, allow_graceful=True)

    def of(self, pid: int) -> Any:
        """Return the node that a process runs on, None where it is none of ours."""
        with contextlib.suppress(OSError):
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            for node in self._cluster.worker_nodes:
                if node.all_processes["raylet"][0].process.pid == parent:
                    return node
        return None

    def living(self) -> list[Any]:
        """Return the nodes that can be lost."""
        return list(self._cluster.worker_nodes)

    def raylets(self) -> list[int]:
        """Return the process id of every node's raylet that lives, the head's included."""
        nodes = [self._cluster.head_node, *self._cluster.worker_nodes]
        found = (node.all_processes["raylet"][0].process for node in nodes)
        return [process.pid for process in found if process.poll() is None]

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()


@contextlib.contextmanager
def simulated(num_nodes: int, cpus: int) -> Iterator[Nodes]:
    """Run a cluster of so many nodes with so many CPUs each."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    # a short path: the sockets in it may have 107 characters
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        nodes = Nodes(num_nodes, cpus, folder)
        try:
            yield nodes
        finally:
            nodes.close()
            for name in ENVIRONMENT.keys() - before.keys():
                del os.environ[name]
            os.environ.update(before)


class Driver:
    """A sweep of a plan in a process of its own, attached to a cluster."""

    def __init__(
        self, plan: Plan, locations: Locations, store: Path, address: str, folder: Path
    ) -> None:
        self.store = store
        self.events: list[dict[str, Any]] = []
        planned = folder / f"{plan.name}.pickle"
        planned.write_bytes(pickle.dumps((plan, locations)))
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._errors = (folder / "driver.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fault_driver", planned, store, address],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": paths},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(b"{"):
                self.events.append(json.loads(line))

    def heard(self, kind: str, since: float = 0.0) -> list[str]:
        """Return the keys of all events of a kind since a time."""
        events = [e for e in list(self.events) if e["kind"] == kind and e["time"] >= since]
        return [event["key"] for event in events]

    def until(self, what: str, condition: Callable[[], Any]) -> Any:
        """Return what the condition gives as soon as that is true.

        Raises RuntimeError where the driver ends before, and TimeoutError after five minutes.
        """
        give_up_at = time.monotonic() + PATIENCE_S
        while not (found := condition()):
            if self.process.poll() is not None:
                raise RuntimeError(f"the driver ended before {what}:\n{self._log()}")
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"not within {PATIENCE_S:.0f} s: {what}")
            time.sleep(0.02)
        return found

    def kill(self) -> None:
        """Kill -9 the driver; what it started on the cluster is left to Ray."""
        self.process.kill()
        self._end()

    def interrupt(self) -> int:
        """Press Ctrl-C; return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self._end()

    def terminate(self) -> int:
        """End it as batch systems do (SIGTERM); return the exit code."""
        self.process.terminate()
        return self._end()

    def outcome(self) -> dict[str, Any]:
        """Wait for the sweep's end and return its outcome."""
        code = self._end()
        if code:
            raise RuntimeError(f"the driver ended with {code}:\n{self._log()}")
        return self.events[-1]

    def _log(self) -> str:
        return Path(self._errors.name).read_text(errors="replace")[-4000:]

    def _end(self) -> int:
        code = self.process.wait(PATIENCE_S)
        self._reader.join(10)
        self._errors.close()
        return code


def workers(store: Path) -> dict[int, bool]:
    """Return the living processes that build artifacts in a store; True: it writes the log."""
    found = {}
    for folder in (store / "tmp").glob("*.*"):
        process = Process.parse(folder.name.partition(".")[0])
        if process is not None and folder.is_dir() and process.is_local and not process.is_gone:
            found[process.pid] = (folder / "log.txt").exists()
    return found


def checkpoint_time(store: Path, key: str) -> float:
    """Return when a stage's resume point was last written, 0 where there is none."""
    try:
        return (store / "checkpoints" / key).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def made_at(store: Path, plan: Plan) -> dict[str, str]:
    """Return when each committed stage of a plan was made."""
    opened = Store.open(store)
    artifacts = (stage.artifact for stage in plan.stages.values() if opened.has(stage.artifact))
    return {artifact.key: str(opened.manifest(artifact)["time"]) for artifact in artifacts}


def rows_of(store: Path, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """Return every stage's measurements without what a clock says, by key."""
    opened = Store.open(store)
    return {
        key: [
            {name: value for name, value in row.items() if name not in ONCE}
            for row in opened.rows(stage.artifact).to_pylist()
        ]
        for key, stage in plan.stages.items()
    }


def tell_recovery(what: str, seconds: float) -> None:
    """Print how long it took to go on, for the table in the docs (pytest -s shows it)."""
    print(f"recovery: {what}: {seconds:.1f} s", flush=True)
