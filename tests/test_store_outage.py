"""A store that fails for a while: a real S3 server that stops and comes back, a mount that stalls.

What cannot get better (a full disk, a missing bucket, missing rights) is not waited for.
"""

import errno
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from store_samples import POR, filled, s3_server, some_rows

from recipe_ray.base.errors import StoreError
from recipe_ray.store.files import LocalFiles
from recipe_ray.store.object_stores import parse_place
from recipe_ray.store.patience import Patience
from recipe_ray.store.remote import RemoteFiles
from recipe_ray.store.store import Store


class Outage:
    """An S3 server that stops now and starts again on its port some seconds later."""

    def __init__(self, options: str, server: ThreadedMotoServer) -> None:
        self.options = options
        self._server = server
        self._port = server.get_host_and_port()[1]

    def begin(self, seconds: float) -> None:
        """Stop the server; its objects stay."""
        self._server.stop()
        self.over = threading.Timer(seconds, self._end)
        self.over.start()

    def _end(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self._port, verbose=False)
        self._server.start()

    def close(self) -> None:
        """Stop the server for good."""
        self._server.stop()


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Outage]:
    """Give a running server that can be stopped for a while."""
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    with s3_server() as first:
        # the bucket is in this process, whichever server answers for it
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        port = server.get_host_and_port()[1]
        _, _, rest = first.partition("&")
        outage = Outage(f"endpoint_override=127.0.0.1:{port}&{rest}", server)
        yield outage
        outage.close()


def test_a_commit_waits_for_a_server_that_comes_back(outage: Outage, tmp_path: Path) -> None:
    store = Store.open(f"s3://bucket/{tmp_path.name}?{outage.options}")
    folder = filled(store.local_scratch(), size=6 * 2**20)  # more than one part of an upload
    outage.begin(seconds=2)
    assert store.commit(POR, folder, {"parent": "p1"}, some_rows())
    outage.over.join()
    assert store.rows(POR).num_rows == 1
    assert (store.fetch(POR) / "tokenizer" / "vocab.txt").is_file()


def test_reads_lists_and_reopened_stores_wait_too(outage: Outage, tmp_path: Path) -> None:
    store = Store.open(f"s3://bucket/{tmp_path.name}?{outage.options}")
    store.write_checkpoint("k1", b"state")
    sent = pickle.dumps(store)
    outage.begin(seconds=2)
    # a worker that starts meanwhile opens the store, too
    assert pickle.loads(sent).read_checkpoint("k1") == b"state"
    outage.over.join()
    outage.begin(seconds=1)
    assert store.committed() == {}
    outage.over.join()


def test_a_server_that_stays_away_is_named_once_patience_is_over(
    outage: Outage, tmp_path: Path
) -> None:
    place = parse_place(f"s3://bucket/x?{outage.options}")
    files = RemoteFiles(place, Patience(total_s=1.5))
    files.write("notes/a", b"before")
    outage.begin(seconds=3600)
    begun = time.monotonic()
    with pytest.raises(StoreError, match=r"cannot write s3://bucket/x/notes/a: .*onnect"):
        files.write("notes/a", b"after")
    assert 0.5 < time.monotonic() - begun < 15
    outage.over.cancel()
    outage._end()
    assert files.read("notes/a") == b"before"


WAITING = """
import sys
from recipe_ray.store.remote import reopen_files
files = reopen_files(sys.argv[1])
print("begun", flush=True)
files.read("notes/a")
"""


def test_ctrl_c_is_heard_while_a_server_is_away() -> None:
    uri = "s3://me:secret@bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=nowhere-1"
    waiting = [sys.executable, "-c", WAITING, uri]
    with subprocess.Popen(waiting, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        process.wait(30)
        assert time.monotonic() - begun < 10
        assert process.returncode == -signal.SIGINT


class Mount:
    """Makes the next `failures` renames fail as a mount does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failures, self.code = 0, 0
        rename = Path.replace

        def replace(path: Path, target: Path) -> Path:
            if self.failures:
                self.failures -= 1
                raise OSError(self.code, "stalled")
            return rename(path, target)

        monkeypatch.setattr(Path, "replace", replace)


def test_a_mount_that_stalls_is_tried_again_and_keeps_the_old_file_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = Mount(monkeypatch)
    files = LocalFiles(tmp_path, Patience(total_s=5, first_s=0.01))
    files.write("notes/a", b"before")
    mount.failures, mount.code = 2, errno.ESTALE
    files.write("notes/a", b"after")
    assert mount.failures == 0
    assert files.read("notes/a") == b"after"
    assert list((tmp_path / "tmp").iterdir()) == []
    mount.failures, mount.code = 10**6, errno.EIO
    impatient = LocalFiles(tmp_path, Patience(total_s=0.1, first_s=0.01))
    with pytest.raises(StoreError, match=r"cannot write .*notes/a: stalled"):
        impatient.write("notes/a", b"never")
    assert impatient.read("notes/a") == b"after"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_what_cannot_get_better_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    mount = Mount(monkeypatch)
    mount.failures, mount.code = 1, code
    with pytest.raises(StoreError, match="cannot write"):
        LocalFiles(tmp_path).write("notes/a", b"x")
    assert not (tmp_path / "notes" / "a").exists()


def test_pauses_grow_and_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, pauses = [0.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def action() -> None:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        Patience().try_again(action, lambda error: True, "read x")
    assert 75 < sum(pauses) <= 90
    assert max(pauses) <= 15
    assert pauses[0] < 0.5 < pauses[4]
