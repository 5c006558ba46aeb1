"""Starting a quiet local Ray or attaching to a cluster; what it holds is in `capacity.py`."""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from recipe_ray.base.errors import UserError
from recipe_ray.data import limits
from recipe_ray.experiment.demand import DATA_CPUS
from recipe_ray.experiment.spec import Launch

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
    "TUNE_MAX_PENDING_TRIALS_PG": "64",  # processes start side by side; the agenda is the limit
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TOKENIZERS_PARALLELISM": "false",
}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def connected(address: str | None, launch: Launch, *, nested: bool = False) -> Iterator[None]:
    """Attach to the cluster at `address` (or RAY_ADDRESS), else start Ray on this machine.

    A Ray that this process has already is used as it is. `nested`: worker groups will be started.
    Raises UserError where no cluster answers.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # what fails is put on record and told; Tune's own traceback of it would be a third time
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    try:
        if address == "local":
            _start(launch, nested)
        else:
            shared = {name: os.environ[name] for name in SETTINGS} | limits.environment()
            ray.init(address, runtime_env={"env_vars": shared}, **_QUIET)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at {address!r}: {error}; where it asks for tokens, set "
            "RAY_AUTH_MODE=token and its token (cluster/README.md)"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _start(launch: Launch, nested: bool) -> None:
    # reading shards is light work: a slot beside the workers' cores will do
    num_cpus = num_cores() + DATA_CPUS if launch.stream else None
    network: Any = ray.util  # untyped
    port = _free_port()
    around: dict[str, str | None] = {
        # Ray sets as many threads as a worker has CPUs, before torch is imported (changing them
        # later is slow), but only where the environment it inherits says nothing
        **dict.fromkeys(_THREADS),
        # what asks a dashboard (Train, when a killed trial's group is to go) finds it by this; it
        # would give up where several Rays run on the machine
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_ADDRESS": f"{network.get_node_ip_address()}:{port}",
    }
    with _environment(around):
        # the dashboard finds the placement groups that a killed trial's workers leave behind
        ray.init(
            "local",
            num_cpus=num_cpus,
            include_dashboard=nested,
            object_store_memory=int(launch.object_store_gb * 1e9),
            **_QUIET,
        )


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
