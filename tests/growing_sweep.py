"""A sweep on a cluster that one of Ray's two autoscalers grows, its nodes simulated here.

Run as a program (`main`): it says in JSON how far the cluster grew and shrank.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.nodes import Ends
from benchmarks.noop import NOWHERE, idle_plan

NUM_NODES, CELLS, SLEEP_S = 3, 20, 5.5
IDLE_MINUTES = 0.2
PATIENCE_S = 120.0
_HEAD, _HEAD_ID = "ray.head.default", "f" * 51 + "00000"
_ENVIRONMENT = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_COMMANDS = [
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "initialization_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
]


def _variables(autoscaler: int) -> dict[str, str]:
    """Return the environment for Ray's first or second autoscaler."""
    if autoscaler == 1:
        return {**_ENVIRONMENT, "RAY_enable_autoscaler_v2": "0"}
    head = {"RAY_CLOUD_INSTANCE_ID": _HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID}
    return {**_ENVIRONMENT, **head, "RAY_enable_autoscaler_v2": "1"}


@contextlib.contextmanager
def growing(max_nodes: int, autoscaler: int) -> Iterator[str]:
    """Start a head without CPUs that may add nodes of one CPU; yield its address."""
    with (
        tempfile.TemporaryDirectory(prefix="g", dir="/tmp", ignore_cleanup_errors=True) as folder,
        socket.socket() as chosen,
    ):
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
        chosen.close()
        address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
        file = Path(folder) / "autoscaling.json"
        file.write_text(json.dumps(_configuration(address, max_nodes, file)))
        try:
            subprocess.run(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
                    *(f"--port={port}", f"--node-ip-address={address.partition(':')[0]}"),
                    *("--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}"),
                    *("--object-store-memory=104857600", f"--autoscaling-config={file}"),
                ],
                env={**os.environ, **_variables(autoscaler)},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            yield address
        finally:
            _kill_all_of(folder)  # `ray stop` would end every Ray on this machine


def _configuration(address: str, max_nodes: int, any_file: Path) -> dict[str, Any]:
    worker = {"CPU": 1, "object_store_memory": 100 * 2**20}
    return {
        "cluster_name": "growing",
        "max_workers": max_nodes,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 10,
        "provider": {
            "type": "external",  # `fake_multinode` wants a file that the package lacks
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": _HEAD_ID,
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            _HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "max_workers": max_nodes},
        },
        "head_node_type": _HEAD,
        "auth": {"ssh_user": "nobody", "ssh_private_key": str(any_file)},  # hashed, never used
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in _COMMANDS},
    }


def _kill_all_of(folder: str) -> None:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and folder in (entry / "cmdline").read_text():
                os.kill(int(entry.name), signal.SIGKILL)


class Census:
    """How many nodes lived, twice a second."""

    def __init__(self) -> None:
        self.nodes: list[int] = []
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        import ray

        while True:
            time.sleep(0.5)
            if ray.is_initialized():
                with contextlib.suppress(Exception):  # it is being shut down
                    self.nodes.append(alive())


def alive() -> int:
    """Return how many nodes live, the head among them."""
    import ray

    list_nodes: Any = ray.nodes
    return sum(node["Alive"] for node in list_nodes())


def main(autoscaler: int) -> None:
    """Sweep, wait for the nodes to go, and print what was seen."""
    from recipe_ray.distributed.cluster import SETTINGS

    os.environ.update({**SETTINGS, **_ENVIRONMENT})
    import ray

    from recipe_ray.distributed.sweep import sweep
    from recipe_ray.store.store import Store

    plan = idle_plan(CELLS, SLEEP_S, grow_to={"nodes": NUM_NODES, "cpus": 1})
    census, ends = Census(), Ends(NUM_NODES)
    with growing(NUM_NODES, autoscaler) as address, tempfile.TemporaryDirectory() as store:
        outcome = sweep(plan, Store.open(store), NOWHERE, address=address, on_event=ends.see)
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False)
        until = time.monotonic() + PATIENCE_S
        while (left := alive()) > 1 and time.monotonic() < until:
            time.sleep(1)
        ray.shutdown()
    seen = {
        "planned": len(plan.stages),
        "done": len(outcome.done),
        "nodes_at_first": census.nodes[0],
        "most_nodes": max(census.nodes),
        "all_at_work": ends.all_at_work,
        "left": left,
    }
    sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
