"""A Ray cluster that is not there, is another, or goes away: one line within seconds."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
import ray
import yaml
from cli_samples import MODEL, experiment
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from samples import corpus_file
from shell import Shell, shell
from tiny_search import search_fields

from recipe_ray.base.errors import ClusterError
from recipe_ray.distributed import contact
from recipe_ray.distributed.cluster import connected
from recipe_ray.distributed.contact import check_answers, not_lost
from recipe_ray.experiment.spec import Launch

__all__ = ["shell"]  # a fixture


def said_of(address: str, given_as: str = "--address") -> str:
    began = time.monotonic()
    with pytest.raises(ClusterError) as raised:
        check_answers(address, given_as)
    assert time.monotonic() - began < 15
    said = str(raised.value)
    assert "\n" not in said
    return said


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


@pytest.fixture
def silent() -> Iterator[str]:
    """Listen, and never say a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


@pytest.fixture
def head(request: pytest.FixtureRequest) -> Iterator[str]:
    """Answer as the head of a cluster of some Ray."""
    answer = gcs_service_pb2.CheckAliveReply(ray_version=request.param)
    servicer = gcs_service_pb2_grpc.NodeInfoGcsServiceServicer()
    servicer.CheckAlive = lambda asked, context: answer
    server = grpc.server(ThreadPoolExecutor(1))
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_an_address_that_nothing_answers_is_said_within_seconds(closed_port: int) -> None:
    said = said_of(f"127.0.0.1:{closed_port}")
    assert f"--address '127.0.0.1:{closed_port}'" in said
    assert "refused" in said
    assert "5 s" in said
    assert "RAY_ADDRESS 'ray://127.0.0.1" in said_of(
        f"ray://127.0.0.1:{closed_port}", "RAY_ADDRESS"
    )
    assert "no-such-host.invalid" in said_of("no-such-host.invalid:6379")


@pytest.mark.parametrize(
    "address",
    ["", "6379", "host", "host:", "host:0", "host:70000", "a b:1", "http://host:1", "a:b:1"],
)
def test_an_address_of_another_form_is_said_to_be_none(address: str) -> None:
    assert "HOST:PORT" in said_of(address)


def test_what_listens_and_is_no_ray_is_not_waited_for(silent: str) -> None:
    assert "no Ray cluster" in said_of(silent)


@pytest.mark.parametrize("head", ["2.40.0"], indirect=True)
def test_a_cluster_of_another_version_is_refused_with_both(head: str) -> None:
    said = said_of(head)
    assert "2.40.0" in said
    assert ray.__version__ in said


@pytest.mark.parametrize("head", [ray.__version__], indirect=True)
def test_a_cluster_of_this_version_is_attached_to(head: str) -> None:
    check_answers(head, "--address")


def test_a_cluster_that_is_lost_ends_the_work_with_what_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(contact, "LOST_AFTER_S", 1.0)
    monkeypatch.setattr(contact, "_ASK_EVERY_S", 0.2)
    before = signal.getsignal(signal.SIGUSR1)
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Timer(0.5, listening.close).start()
    with (
        pytest.raises(ClusterError, match=r"was lost: what is committed .* same command"),
        not_lost(f"127.0.0.1:{listening.getsockname()[1]}"),
    ):
        time.sleep(30)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_another_error_while_the_cluster_answers_stays_itself(silent: str) -> None:
    with pytest.raises(ZeroDivisionError), not_lost(silent):
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt), not_lost(silent):
        raise KeyboardInterrupt


_STUCK = """
import sys, time
from recipe_ray.distributed import contact
from recipe_ray.distributed.cluster import connected
contact.LOST_AFTER_S = contact._ASK_EVERY_S = contact.GRACE_S = 0.2
contact.signal.pthread_kill = lambda thread, number: None  # as if it came to Ray's own code
with contact.not_lost(sys.argv[1]):
    time.sleep(60)
"""


def test_a_driver_that_hangs_in_a_lost_cluster_ends_and_says_why(closed_port: int) -> None:
    command = [sys.executable, "-c", _STUCK, f"127.0.0.1:{closed_port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "was lost" in line


_CONNECT = """
from recipe_ray.base.errors import UserError
from recipe_ray.distributed.cluster import connected
from recipe_ray.experiment.spec import Launch
try:
    with connected(None, Launch()):
        print("connected")
except UserError as error:
    print("error:", error)
"""


@pytest.mark.parametrize(
    ("variables", "word"),
    [
        ({"RAY_TMPDIR": "/tmp/" + "long" * 30}, "RAY_TMPDIR"),
        ({"HOME": "/proc/nobody", "RAY_AUTH_MODE": ""}, "HOME"),
    ],
)
def test_what_keeps_ray_from_starting_here_is_said_in_a_line(
    variables: dict[str, str], word: str
) -> None:
    environment = {**os.environ, **variables}
    for name in ("RAY_ADDRESS", *(name for name, value in variables.items() if not value)):
        environment.pop(name, None)
    command = [sys.executable, "-c", _CONNECT]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    (line,) = done.stdout.splitlines()
    assert line.startswith("error: Ray cannot be started on this machine")
    assert word in line
    assert "Traceback" not in done.stderr


def test_a_machine_too_busy_for_ray_is_said_to_be_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*given: Any, **named: Any) -> None:
        raise RuntimeError("The current node timed out during startup. This could happen because")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    said = "very busy .*the same command tries again"
    with pytest.raises(ClusterError, match=said), connected("local", Launch()):
        pass


def _words(command: str, folder: Path) -> list[object]:
    if command == "sweep":
        return [experiment(folder), "--store", "store"]
    if command == "search":
        file = folder / "search.yaml"
        file.write_text(yaml.safe_dump(search_fields(folder)))
        return [file, "--store", "store"]
    return [MODEL, "--aux", corpus_file(folder), "--out", "out", "--workers", "2"]


@pytest.mark.parametrize("command", ["sweep", "search", "purify"])
def test_every_command_says_that_the_address_is_silent(
    shell: Shell, closed_port: int, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    said = shell.fails(command, *_words(command, shell.folder))
    assert f"no Ray cluster answers at RAY_ADDRESS '127.0.0.1:{closed_port}'" in said


def test_a_process_that_is_attached_to_a_cluster_uses_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attached = SimpleNamespace(gcs_address="10.0.0.7:6379")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: attached)
    for same in (None, "local", "auto", "10.0.0.7:6379", "localhost:6379", "ray://10.0.0.7:10001"):
        with connected(same, Launch()):
            pass
    for other in ("127.0.0.1:1", "10.0.0.8:6379"):
        wanted = f"--address {other}: this process is attached to the Ray cluster at 10.0.0.7:6379"
        with pytest.raises(ClusterError, match=wanted), connected(other, Launch()):
            pass
