"""Starting a quiet local Ray or attaching to a cluster, and what it has room for.

Room is that of the living nodes or, if the cluster grows by itself, of what it may become. The
open-source autoscalers of Ray 2.60 do not tell a driver their maximum, so `launch.grow_to` does.
They start nodes for placement groups that find no room: those of the trials, and those of Ray
Train's workers. If only living nodes counted, no group would ever wait, and the cluster would never
grow.
"""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig

from recipe_ray.base import catalog, limits
from recipe_ray.base.errors import ClusterError, ClusterLostError, UserError, in_a_line
from recipe_ray.base.import_path import SAFE
from recipe_ray.base.paths import FOLDER, enter_folder
from recipe_ray.distributed.contact import check_answers, not_lost
from recipe_ray.experiment.spec import Growth, Launch
from recipe_ray.schedule.resources import DATA_CPUS, Capacity

# read by Ray in this process and in its workers, unless the user set them
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of an experiment file hold in every stage
    "RAY_AIR_NEW_OUTPUT": "0",  # the new one prints a table even when told to be quiet
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # default 2: seconds lost at every stage's end
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_local_fs_capacity_threshold": "0.9",  # no spilling onto a disk that is nine tenths full
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the store is the ledger
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep, it is resumed from the store
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # processes start side by side; the queue is the limit
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",  # else threads of a stage spin while a neighbour has their core
}
_CLIENT = "ray://"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


class _Job(JobConfig):
    """A job whose workers import installed packages, but nothing of the current folder.

    Ray would put that first on their path. The folder of a driver's own script stays, if Python
    has it on the driver's.
    """

    def _serialize(self) -> str:
        script = os.path.realpath(f"{sys.argv[0]}/..")
        self._py_driver_sys_path = [
            path for path in self._py_driver_sys_path if path == script and path in sys.path
        ]
        return super()._serialize()


@contextmanager
def connected(address: str | None, launch: Launch, *, nested: bool = False) -> Iterator[None]:
    """Attach to the cluster at `address` (or RAY_ADDRESS), else start Ray on this machine.

    A Ray that this process has already is used as it is. `nested`: worker groups will be started.
    Raises ClusterError within seconds if no cluster answers, if Ray cannot start here, if this
    process is attached to another cluster, and if the cluster is lost on the way.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.update([SAFE])
    catalog.settle()
    # a failure is recorded and told; Tune's own traceback would repeat it a third time
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        _check_same(address)
        yield
        return
    given_as = "--address" if address else "RAY_ADDRESS"
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        with _explained("Ray cannot be started on this machine"), _own_sigterm():
            _start(launch, nested)
    else:
        check_answers(address, given_as)
        shared = {name: os.environ[name] for name in (*SETTINGS, SAFE[0])} | limits.environment()
        unusable = f"the Ray cluster at {given_as} {address!r} cannot be used"
        with _explained(unusable), _own_sigterm():
            # a client's job has no working folder on its path anyway, and is unpickled by the head
            job: Any = None if address.startswith(_CLIENT) else _Job()
            environment: dict[str, Any] = {
                "env_vars": {**shared, FOLDER: str(Path.cwd())},
                "worker_process_setup_hook": f"{enter_folder.__module__}.{enter_folder.__name__}",
            }
            ray.init(address, job_config=job, runtime_env=environment, **_QUIET)
    head = ray.get_runtime_context().gcs_address
    try:
        # a client watches its own address: the head's may be out of its reach
        watched = address.removeprefix(_CLIENT) if address.startswith(_CLIENT) else head
        with not_lost(watched, address if ":" in address else None):
            yield
    except ClusterLostError:
        raise  # a cluster that is gone receives no goodbye
    except BaseException:
        ray.shutdown()
        raise
    ray.shutdown()


def _check_same(address: str | None) -> None:
    """Raise ClusterError if this process is attached to another cluster than was asked for."""
    attached = ray.get_runtime_context().gcs_address
    host, _, port = attached.rpartition(":")
    same = {f"{name}:{port}" for name in (host, "127.0.0.1", "localhost")}
    if address and ":" in address and not address.startswith(_CLIENT) and address not in same:
        raise ClusterError(
            f"--address {address}: this process is attached to the Ray cluster at {attached} "
            "already; leave the address out, or call ray.shutdown() first"
        )


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say in one line what prevents Ray from starting, and what would help."""
    try:
        yield
    except UserError:
        raise
    # Ray says so in errors of all kinds: of the operating system, of gRPC, of its own
    except Exception as error:
        ray.shutdown()
        raise ClusterError(f"{what}: {_advice(error)}") from error


def _advice(error: Exception) -> str:
    said = in_a_line(error)
    if "AF_UNIX path length" in said:
        named = [name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)]
        return (
            f"its sockets would have paths of more than 107 bytes, the most that there may be: set "
            f"RAY_TMPDIR to a shorter folder ({', '.join(named) or 'RAY_TMPDIR'} is too long)"
        )
    if "timed out during startup" in said:
        return (
            f"its processes did not answer within 30 s, as on a machine that is very busy "
            f"(load {os.getloadavg()[0]:.0f} on {num_cores()} cores): the same command tries again"
        )
    if isinstance(error, AuthenticationError | ConnectionError):
        return (
            f"{said}; if it asks for tokens, set RAY_AUTH_MODE=token and its token "
            "(cluster/README.md)"
        )
    if "Version mismatch" in said:
        return f"{said}; install one version everywhere (cluster/constraints.txt)"
    home = os.environ.get("HOME", "")
    if "home directory" in said or (home and isinstance(error, OSError) and home in said):
        return (
            f"{said}; Ray keeps its token below HOME ({home or 'not set'}): set HOME to a folder "
            "that may be written, or RAY_AUTH_MODE=disabled if nobody else can reach this machine"
        )
    return said


def _start(launch: Launch, nested: bool) -> None:
    # reading shards is light work: a slot besides the workers' cores is enough
    num_cpus = num_cores() + DATA_CPUS if launch.stream else None
    network: Any = ray.util  # untyped
    port = _free_port()
    around: dict[str, str | None] = {
        # Ray sets as many threads as a worker has CPUs, before torch is imported (changing them
        # later is slow), but only if the environment it inherits says nothing
        **dict.fromkeys(_THREADS),
        # Train asks a dashboard when a killed trial's group must go, and finds it by this; it
        # would give up if several Rays run on the machine
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_ADDRESS": f"{network.get_node_ip_address()}:{port}",
    }
    with _environment(around):
        # the dashboard finds the placement groups that a killed trial's workers leave behind
        ray.init(
            "local",
            job_config=_Job(),
            num_cpus=num_cpus,
            include_dashboard=nested,
            object_store_memory=int(launch.object_store_gb * 1e9),
            **_QUIET,
        )


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the handler of SIGTERM that this process has.

    Ray replaces it: it would print two stack traces and end with code 1.
    """
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _environment(changes: dict[str, str | None]) -> Iterator[None]:
    """Set variables of this process for a while; None: without it."""
    before = {name: os.environ.pop(name, None) for name in changes}
    os.environ.update({name: value for name, value in changes.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


_ASK_EVERY_S = 1.0  # the queue asks at every turn of Tune, and each answer takes a request


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
    """Return the sums and maxima over nodes, or over those that may come if these are more."""
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
