"""A store on S3 (a real server on loopback): unreachable, damaged, raced for, killed, flaky."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
from store_samples import POR, SPAWN, commit_once, committed, filled, raced, s3_server

from recipe_ray.base.errors import StoreError
from recipe_ray.store.files import Patience
from recipe_ray.store.remote import RemoteFiles
from recipe_ray.store.store import Store


@pytest.fixture(scope="module")
def s3_options() -> Iterator[str]:
    """Give the URI options of a running S3 server."""
    with s3_server() as options:
        yield options


def test_an_unreachable_server_and_a_missing_bucket_are_named(s3_options: str) -> None:
    with pytest.raises(StoreError, match=r"cannot reach s3://bucket/x: .*connect"):
        Store.open("s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
    with pytest.raises(StoreError, match="there is no 'nowhere'"):
        Store.open(f"s3://nowhere/x?{s3_options}")


def test_credentials_in_the_uri_stay_out_of_messages(s3_options: str) -> None:
    with pytest.raises(StoreError) as caught:
        Store.open(f"s3://me:secret@nowhere/x?{s3_options}")
    assert "secret" not in str(caught.value)


def test_a_download_that_differs_from_its_checksum_is_refused(
    s3_options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    uri = f"s3://bucket/{tmp_path.name}?{s3_options}"
    store = Store.open(uri)
    committed(store)
    filesystem, root = pafs.FileSystem.from_uri(uri)
    attempt = store.manifest(POR)["attempt"]
    with filesystem.open_output_stream(f"{root}/{POR.folder}/{attempt}/model.safetensors") as file:
        file.write(b"Weights")
    with pytest.raises(StoreError, match=r"s3://bucket/.*model\.safetensors: checksum mismatch"):
        store.fetch(POR)
    assert not list((tmp_path / "cache").rglob("model.safetensors"))


def test_a_damaged_cached_copy_is_downloaded_again(
    s3_options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    uri = f"s3://bucket/{tmp_path.name}?{s3_options}"
    committed(Store.open(uri))
    weights = Store.open(uri).fetch(POR) / "model.safetensors"
    assert weights.is_relative_to(tmp_path / "cache" / "artifacts")
    weights.write_text("Weights")
    assert (Store.open(uri).fetch(POR) / "model.safetensors").read_text() == "weights"


def test_after_racing_commits_to_s3_one_whole_artifact_is_there(
    s3_options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    uri = f"s3://bucket/{tmp_path.name}?{s3_options}"
    landed = raced(uri, 2)
    store = Store.open(uri)
    number = store.manifest(POR)["number"]
    # an object store cannot rename: both may believe they landed, but files never mix
    assert number in landed
    assert (store.fetch(POR) / "model.safetensors").read_text() == f"from {number}"
    assert store.rows(POR)["value"].to_pylist() == [number]


def test_a_commit_to_s3_that_is_killed_leaves_nothing_visible(
    s3_options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    folder = filled(tmp_path / "made")
    for number in range(50):
        (folder / f"a{number:02}").write_text("x")
    uri = f"s3://bucket/{tmp_path.name}?{s3_options}"
    filesystem, root = pafs.FileSystem.from_uri(uri)
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    child = SPAWN.Process(target=commit_once, args=(uri, str(folder)))
    child.start()
    while not filesystem.get_file_info(selector):
        assert child.is_alive()
    child.kill()
    child.join()
    store = Store.open(uri)
    assert store.committed() == {}
    assert not store.has(POR)
    committed(store)
    assert (store.fetch(POR) / "model.safetensors").read_text() == "weights"


def test_a_manifest_that_names_a_folder_elsewhere_deletes_nothing_there(
    s3_options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    own = filled(tmp_path / "own")
    uri = f"s3://bucket/{tmp_path.name}?{s3_options}"
    store = Store.open(uri)
    committed(store)
    manifest = {**store.manifest(POR), "attempt": str(own)}
    filesystem, root = pafs.FileSystem.from_uri(uri)
    with filesystem.open_output_stream(f"{root}/{POR.folder}/manifest.json") as file:
        file.write(json.dumps(manifest).encode())
    with pytest.raises(StoreError, match=r"manifest\.json: damaged manifest: no proper attempt"):
        Store.open(uri).fetch(POR)
    assert (own / "model.safetensors").exists()


class Flaky:
    """A file system whose next `failures` reads fail, otherwise the local one."""

    def __init__(self) -> None:
        self.failures = 0
        self.error = OSError("AWS Error NETWORK_CONNECTION")

    def __getattr__(self, name: str) -> Any:
        return getattr(pafs.LocalFileSystem(), name)

    def open_input_stream(self, path: str) -> Any:
        if self.failures:
            self.failures -= 1
            raise self.error
        return pafs.LocalFileSystem().open_input_stream(path)


def test_a_transient_failure_is_tried_again_until_patience_is_over(tmp_path: Path) -> None:
    flaky = Flaky()
    patience = Patience(total_s=0.5, first_s=0.1)
    files = RemoteFiles(flaky, str(tmp_path), "flaky://place", patience)
    files.write("folder/name", b"content")
    flaky.failures = 2
    assert files.read("folder/name") == b"content"
    flaky.failures = 1000
    with pytest.raises(StoreError, match=r"cannot read flaky://place/folder/name: .*NETWORK"):
        files.read("folder/name")


def test_what_cannot_get_better_is_not_tried_again(tmp_path: Path) -> None:
    flaky = Flaky()
    files = RemoteFiles(flaky, str(tmp_path), "flaky://place")
    files.write("name", b"content")
    flaky.failures, flaky.error = 2, PermissionError(13, "Permission denied")
    with pytest.raises(StoreError, match="read-only for this user"):
        files.read("name")
    assert flaky.failures == 1
