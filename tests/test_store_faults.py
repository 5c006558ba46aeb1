"""A local store under damage, races, kill -9, full and read-only disks: all of them real."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from store_samples import POR, SPAWN, commit_once, committed, filled, raced, so_far

from recipe_ray.base.errors import StoreError
from recipe_ray.store.store import Store

# --- damage


def test_an_altered_file_is_named(tmp_path: Path) -> None:
    committed(Store.open(tmp_path))
    (tmp_path / POR.folder / "model.safetensors").write_text("Weights")
    with pytest.raises(StoreError, match=r"model\.safetensors: checksum mismatch"):
        Store.open(tmp_path).fetch(POR)
    (tmp_path / POR.folder / "model.safetensors").write_text("weigh")
    with pytest.raises(StoreError, match=r"model\.safetensors: 5 bytes, but 7"):
        Store.open(tmp_path).fetch(POR)
    (tmp_path / POR.folder / "model.safetensors").unlink()
    with pytest.raises(StoreError, match=r"model\.safetensors: missing"):
        Store.open(tmp_path).fetch(POR)


def test_truncated_rows_and_manifests_are_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    committed(store)
    rows = tmp_path / POR.folder / "rows.parquet"
    rows.write_bytes(rows.read_bytes()[:100])
    with pytest.raises(StoreError, match=r"rows\.parquet: checksum mismatch"):
        store.rows(POR)
    manifest = tmp_path / POR.folder / "manifest.json"
    manifest.write_text(manifest.read_text()[:50])
    with pytest.raises(StoreError, match=r"manifest\.json: damaged"):
        store.manifest(POR)
    manifest.write_text(json.dumps({"manifest_version": 7}))
    with pytest.raises(StoreError, match="manifest version 7; this program reads version 1"):
        store.manifest(POR)


def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    committed(store)
    path = tmp_path / POR.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../../../../etc/passwd"] = {"sha256": "", "size": 0}
    path.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="damaged manifest"):
        store.fetch(POR)


# --- races, kills, full disks


def test_of_racing_commits_exactly_one_lands(tmp_path: Path) -> None:
    for attempt in range(2):
        uri = str(tmp_path / str(attempt))
        landed = raced(uri, 3)
        store = Store.open(uri)
        assert len(landed) == 1
        assert store.manifest(POR)["number"] == landed[0]
        assert (store.fetch(POR) / "model.safetensors").read_text() == f"from {landed[0]}"
        assert list((tmp_path / str(attempt) / "tmp").iterdir()) == []


@pytest.mark.parametrize("delay_s", [0, 0.02, 0.1])
def test_a_commit_that_is_killed_leaves_nothing_visible(tmp_path: Path, delay_s: float) -> None:
    folder = filled(tmp_path / "made", size=50_000_000)
    store = Store.open(tmp_path / "store")
    child = SPAWN.Process(target=commit_once, args=(store.uri, str(folder)))
    child.start()
    scratch = tmp_path / "store" / "tmp"
    while not (scratch.is_dir() and any(scratch.iterdir())):
        assert child.is_alive()
        time.sleep(0.001)
    time.sleep(delay_s)
    child.kill()
    child.join()
    if store.has(POR):  # a disk fast enough to take 50 MB within the delay
        assert delay_s > 0
        assert (store.fetch(POR) / "model.safetensors").stat().st_size > 50_000_000
        return
    assert child.exitcode == -signal.SIGKILL
    assert store.committed() == {}
    assert list((tmp_path / "store").glob(f"{POR.kind}/*")) == []
    committed(store)
    assert (store.fetch(POR) / "model.safetensors").read_text() == "weights"


def _commit_with_little_room(uri: str, folder: str, outcomes: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        commit_once(uri, folder)
        outcomes.put("landed")
    except StoreError as error:
        outcomes.put(str(error))


def test_a_file_that_cannot_be_written_whole_says_what_to_do(tmp_path: Path) -> None:
    folder = filled(tmp_path / "made", size=1_000_000)
    store = Store.open(tmp_path / "store")
    outcomes = SPAWN.Queue()
    child = SPAWN.Process(target=_commit_with_little_room, args=(store.uri, str(folder), outcomes))
    child.start()
    message = outcomes.get(timeout=60)
    child.join()
    assert "start the same command again" in message
    assert store.committed() == {}
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


def _in_own_mounts(place: Path, options: str, code: str) -> str:
    """Run Python with a tmpfs mounted at `place`, seen by that process alone; give its output."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    place.mkdir()
    script = f'mount -t tmpfs -o {options} tmpfs "$1" && exec "$2" -c "$3" "$1"'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", str(place), sys.executable, code]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_says_what_to_do_and_keeps_what_is_committed(tmp_path: Path) -> None:
    code = """
import os, sys
from store_samples import *
from recipe_ray.base.errors import StoreError
store = Store.open(sys.argv[1])
committed(store)
folder = filled(store.local_scratch())
big = ArtifactId("purify", "big", "b1")
try:
    with (folder / "big").open("wb") as file:
        file.write(b"x" * 1_040_000)
    (folder / "rest").write_bytes(b"x" * 4)
except OSError as error:
    print("stage itself", error)
try:
    store.commit(big, folder, {}, some_rows())
except StoreError as error:
    print(error)
print(store.committed() == {POR.key: POR}, os.listdir(sys.argv[1] + "/tmp"))
store.fetch(POR)
"""
    output = _in_own_mounts(tmp_path / "small", "size=1048576", code)
    assert "No space left on device" in output
    assert "stage itself" in output or "start the same command again" in output
    assert output.endswith("True []\n")


def test_a_read_only_store_can_be_read_and_says_so_when_written(tmp_path: Path) -> None:
    code = """
import subprocess, sys
from store_samples import *
from recipe_ray.base.errors import StoreError
store = Store.open(sys.argv[1] + "/store")
committed(store)
subprocess.run(["mount", "-o", "remount,ro", sys.argv[1]], check=True)
store = Store.open(sys.argv[1] + "/store")
print(store.committed() == {POR.key: POR}, store.rows(POR).num_rows)
for attempt in (
    lambda: store.write_plan("e", {}),
    lambda: store.local_scratch(),
    lambda: Store.open(sys.argv[1] + "/other"),
):
    try:
        attempt()
    except StoreError as error:
        print(error)
"""
    lines = _in_own_mounts(tmp_path / "disk", "size=1048576", code).splitlines()
    assert lines[0] == "True 1"
    assert len(lines) == 4
    assert all("read-only for this user" in line for line in lines[1:])


def test_progress_is_never_seen_half_written(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.write_progress(POR, {**so_far(0), "padding": "x" * 100_000})
    writer = SPAWN.Process(target=_write_progress, args=(store.uri,))
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(store.progress()[POR.key]["step"])
    writer.join()
    assert writer.exitcode == 0
    assert len(seen) > 2


def _write_progress(uri: str) -> None:
    store = Store.open(uri)
    for step in range(100):
        store.write_progress(POR, {**so_far(step), "padding": "x" * 100_000})
