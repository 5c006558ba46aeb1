"""Whether a Ray cluster answers: asked before a driver attaches, and all the while it works.

Ray waits a minute for an address that nothing answers. If a driver's cluster is gone, Ray ends the
driver after another minute, by `exit(1)` from a thread of its own and without a message.
"""

import atexit
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import grpc_utils, services
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

from recipe_ray.base.errors import ClusterError, ClusterLostError, UserError

ANSWER_S = 5.0  # for a first answer; over any network it takes milliseconds
LOST_AFTER_S = 20.0  # without an answer; below the 60 s after which Ray ends this process
GRACE_S = 5.0
_ASK_EVERY_S = 2.0
KEPT = "what is committed in the store stays: start the same command again to go on"
_TOKENS = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
_FORM = re.compile(r"(ray://)?(?P<host>[^\s:/@]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})")
logger = logging.getLogger("recipe_ray")


def check_answers(address: str, given_as: str) -> None:
    """Raise ClusterError, within seconds, if no Ray of our version answers at an address.

    `given_as`: the option or variable that the address is from.
    """
    if address == "auto":
        try:
            address = services.canonicalize_bootstrap_address_or_die("auto")
        except ConnectionError as error:
            raise ClusterError(
                f"{given_as} 'auto': no Ray cluster runs on this machine: start one "
                "(`ray start --head`), give HOST:PORT, or leave the address out"
            ) from error
    found = _FORM.fullmatch(address)
    if found is None or not 0 < int(found["port"]) < 65536:
        raise ClusterError(
            f"{given_as} {address!r} is no address: allowed are HOST:PORT such as 10.0.0.1:6379, "
            "'auto' (the cluster on this machine) and 'local' (a new Ray on this machine)"
        )
    host, port = found["host"].strip("[]"), int(found["port"])
    reason = _unreachable(host, port, ANSWER_S)
    if reason is not None:
        raise ClusterError(
            f"no Ray cluster answers at {given_as} {address!r} ({reason}; waited at most "
            f"{ANSWER_S:.0f} s): see whether it runs (`ray status --address {address}`), and "
            "whether its port may be reached from here"
        )
    if not address.startswith("ray://"):
        _check_version(address, given_as)


def _unreachable(host: str, port: int, wait_s: float) -> str | None:
    """Return why nothing can be reached there, None if something listens."""
    try:
        socket.create_connection((host, port), timeout=wait_s).close()
    except OSError as error:
        return error.strerror or str(error)
    except UnicodeError:
        return "not the name of a host"
    return None


def _check_version(address: str, given_as: str) -> None:
    transport: Any = grpc_utils  # untyped, as all that is generated
    messages: Any = gcs_service_pb2
    services_of_head: Any = gcs_service_pb2_grpc
    options = (("grpc.enable_http_proxy", 0),)
    try:
        with transport.init_grpc_channel(address, options=options) as channel:
            stub = services_of_head.NodeInfoGcsServiceStub(channel)
            version = stub.CheckAlive(messages.CheckAliveRequest(), timeout=ANSWER_S).ray_version
    except transport.grpc.RpcError as error:
        code = error.code().name
        if code in _TOKENS:
            raise ClusterError(_wanted_token(address, given_as)) from error
        raise ClusterError(
            f"what answers at {given_as} {address!r} is no Ray cluster, or one that hangs "
            f"({code} within {ANSWER_S:.0f} s): give the port of its head (6379 unless "
            "`ray start --port` said another)"
        ) from error
    except AuthenticationError as error:  # our own side has no token to show
        raise ClusterError(_wanted_token(address, given_as)) from error
    if version and version != ray.__version__:
        raise ClusterError(
            f"the cluster at {given_as} {address!r} runs Ray {version}, this is Ray "
            f"{ray.__version__}: install one version everywhere (cluster/constraints.txt)"
        )


def _wanted_token(address: str, given_as: str) -> str:
    # asked here, because Ray's own answer comes after a screen of its logs
    has_mode = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    lacks = "not the one that is set here" if has_mode else "set RAY_AUTH_MODE=token and its token"
    return (
        f"the Ray cluster at {given_as} {address!r} asks for a token: {lacks} (RAY_AUTH_TOKEN, "
        "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token; cluster/README.md)"
    )


def head_is_silent() -> bool:
    """Tell whether the head of our cluster does not answer: then losses are no stage's fault."""
    return not _Head(ray.get_runtime_context().gcs_address).answers()


class _LostError(KeyboardInterrupt):
    """Ends the driver's work, as Ctrl-C does: Tune ignores anything less."""


@contextmanager
def not_lost(address: str, given: str | None = None) -> Iterator[None]:
    """Watch the head of the cluster while the context lasts; `given`: as its user knows it.

    Raises ClusterLostError as soon as it has not answered for `LOST_AFTER_S`, and in place of any
    other error than a UserError if it does not answer then. A main thread that does not come back
    from Ray within `GRACE_S` is not waited for: the process says why and ends with code 2.
    """
    head = _Head(address, given)
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        # not Ctrl-C's signal: a shell's background jobs ignore it
        before = signal.signal(signal.SIGUSR1, _raise_lost)
        threading.Thread(target=head.watch, name="cluster-watch", daemon=True).start()
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, _LostError) and head.answers():
            raise
        # Ray would wait for the cluster once more, and end this process without a message
        atexit.unregister(ray.shutdown)
        raise ClusterLostError(head.lost) from error
    finally:
        head.over.set()
        if in_main:
            signal.signal(signal.SIGUSR1, before)


def _raise_lost(number: int, frame: Any) -> None:
    raise _LostError


class _Head:
    """The head of a cluster, asked every two seconds in a thread of its own."""

    def __init__(self, address: str, given: str | None = None) -> None:
        host, _, port = address.rpartition(":")
        self._where = (host.strip("[]"), int(port))
        self.lost = f"the Ray cluster at {given or address} was lost: {KEPT}"
        self.over = threading.Event()

    def answers(self) -> bool:
        """Tell whether it answers now."""
        return _unreachable(*self._where, _ASK_EVERY_S) is None

    def watch(self) -> None:
        """Ask until the context is over, or the head has been silent for too long."""
        heard, told = time.monotonic(), False
        while not self.over.wait(_ASK_EVERY_S):
            if self.answers():
                heard, told = time.monotonic(), False
            elif time.monotonic() - heard >= LOST_AFTER_S:
                self._end()
                return
            elif not told:
                told = True
                logger.warning("the head of the Ray cluster (%s:%d) does not answer", *self._where)

    def _end(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGUSR1)  # to that thread, so that it wakes up
        if not self.over.wait(GRACE_S):  # it waits in Ray, and no signal reaches it
            sys.stderr.write(f"error: {self.lost}\n")
            sys.stderr.flush()
            os._exit(2)
