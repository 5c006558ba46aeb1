"""A real Ray of this machine that drivers attach to, as `ray start --head` makes one."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


@contextlib.contextmanager
def real_cluster(num_cpus: int, *, dashboard: bool = False) -> Iterator[str]:
    """Start a head with so many CPUs in processes of its own; yield its address."""
    # a short path: the sockets in it may have 107 characters
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        address = f"{socket.gethostbyname(socket.gethostname())}:{free_port()}"
        shown = [f"--dashboard-port={free_port()}"] if dashboard else []
        try:
            subprocess.run(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
                    *(f"--port={address.partition(':')[2]}", f"--num-cpus={num_cpus}"),
                    *(f"--node-ip-address={address.partition(':')[0]}", f"--temp-dir={folder}"),
                    f"--ray-client-server-port={free_port()}",
                    f"--include-dashboard={str(dashboard).lower()}",
                    *("--object-store-memory=104857600", *shown),
                ],
                # workers import what tests and benchmarks define, and not from a working folder
                env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": str(Path(__file__).parents[1])},
                stdout=subprocess.DEVNULL,
                check=True,
            )
            yield address
        finally:
            kill_all_of(folder)  # `ray stop` would end every Ray on this machine
            kill_all_of(f"--address={address}")  # its server for clients names no folder


def kill_all_of(folder: str) -> None:
    """Kill every process that names a folder in its command."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and folder in (entry / "cmdline").read_text():
                os.kill(int(entry.name), signal.SIGKILL)
