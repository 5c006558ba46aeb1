"""A store on S3 (a real server on loopback): unreachable, damaged, raced for, killed, flaky."""

import json
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from object_servers import ObjectServer, object_server
from store_samples import POR, SPAWN, commit_once, committed, filled, raced, some_rows

from recipe_ray.base.errors import StoreError
from recipe_ray.store.manifest import write_manifest
from recipe_ray.store.object_stores import parse_place
from recipe_ray.store.patience import Patience
from recipe_ray.store.remote import RemoteFiles, reopen_files
from recipe_ray.store.store import Store


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
    assert landed == [number]
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


def test_of_two_that_commit_to_s3_at_once_one_knows_that_it_was_first(
    s3_options: str, tmp_path: Path
) -> None:
    store = Store.open(f"s3://bucket/{tmp_path.name}?{s3_options}")
    folders = [filled(tmp_path / name) for name in "ab"]
    with ThreadPoolExecutor(2) as pool:
        landed = list(pool.map(lambda folder: store.commit(POR, folder, {}, some_rows()), folders))
    assert sorted(landed) == [False, True]


CLOUDS = {
    "S3": "s3://me:secret@bucket/runs?region=nowhere-1&{}",
    "GCS": "gs://bucket/runs?anonymous=true&{}",
    "Azure": "az://bucket/runs?account=bucket&anonymous=true&{}",
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectServer]:
    """Run an object server that can be made to fail."""
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    with object_server("bucket") as running:
        yield running


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_store_is_kept_on_each_cloud_by_its_url(
    cloud: str, server: ObjectServer, tmp_path: Path
) -> None:
    store = Store.open(CLOUDS[cloud].format(server.options))
    committed(store)
    assert set(store.committed()) == {POR.key}
    assert (store.fetch(POR) / "tokenizer" / "vocab.txt").read_text() == "the\ncat\n"
    assert store.rows(POR).num_rows == 1
    store.write_checkpoint("k1", b"1234")
    sent = pickle.loads(pickle.dumps(store))  # as a worker gets it
    assert sent.checkpoints() == {"k1": 4}
    assert sent.read_checkpoint("k1") == b"1234"
    sent.drop_checkpoint("k1")
    assert store.read_checkpoint("k1") is None
    assert all(key.startswith("runs/") for key in server.buckets["bucket"])


@pytest.mark.parametrize("cloud", CLOUDS)
def test_on_each_cloud_the_first_manifest_stays_and_the_second_attempt_is_cleared(
    cloud: str, server: ObjectServer, tmp_path: Path
) -> None:
    uri = CLOUDS[cloud].format(server.options)
    first, second = reopen_files(uri), reopen_files(uri)
    one, two = ("1" * 32, "2" * 32)
    for attempt in (one, two):
        write_manifest(filled(tmp_path / attempt), POR, attempt, {})
    assert first.publish(tmp_path / one, POR.folder, one)
    assert not second.publish(tmp_path / two, POR.folder, two)
    # an answer was lost, and the first asks again
    assert first.publish(tmp_path / one, POR.folder, one)
    manifest = first.read(f"{POR.folder}/manifest.json")
    assert manifest is not None
    assert json.loads(manifest)["attempt"] == one
    assert first.names(POR.folder) == [one, "manifest.json"]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_what_ray_data_reads_is_the_same_store(cloud: str, server: ObjectServer) -> None:
    files = reopen_files(CLOUDS[cloud].format(server.options))
    files.write("corpora/a/00.parquet", b"columns")
    filesystem, root = pickle.loads(pickle.dumps(files.arrow()))
    with filesystem.open_input_file(f"{root}/corpora/a/00.parquet") as file:
        assert file.read() == b"columns"


@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_missing_bucket_and_refused_keys_are_told_on_each_cloud(
    cloud: str, server: ObjectServer
) -> None:
    uri = CLOUDS[cloud].format(server.options)
    with pytest.raises(StoreError, match="there is no 'nowhere'; create it first"):
        Store.open(uri.replace("bucket/", "nowhere/"))
    files = reopen_files(uri)
    server.failures += [403]
    with pytest.raises(StoreError, match=r"runs/a: access denied .*these credentials"):
        files.read("a")


def test_a_transient_failure_is_tried_again_until_patience_is_over(server: ObjectServer) -> None:
    place = parse_place(CLOUDS["S3"].format(server.options))
    files = RemoteFiles(place, Patience(total_s=1.5, first_s=0.1))
    server.failures += [503, 500]
    files.write("folder/name", b"content")
    server.failures += [503, 503]
    assert files.read("folder/name") == b"content"
    server.failures += [503] * 1000
    with pytest.raises(StoreError, match=r"cannot read s3://bucket/runs/folder/name: "):
        files.read("folder/name")


def test_what_cannot_get_better_is_not_tried_again(server: ObjectServer) -> None:
    files = reopen_files(CLOUDS["S3"].format(server.options))
    before = server.num_requests
    server.failures += [403, 403]
    with pytest.raises(StoreError, match="access denied"):
        files.write("name", b"content")
    assert server.num_requests == before + 1


def test_a_profile_of_aws_is_used_as_its_own_tools_do(
    s3_options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    profiles = tmp_path / "credentials"
    profiles.write_text("[work]\naws_access_key_id = me\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profiles))
    monkeypatch.setenv("AWS_PROFILE", "work")
    uri = f"s3://bucket/{tmp_path.name}?{s3_options}"
    committed(Store.open(uri))
    monkeypatch.setenv("AWS_PROFILE", "home")
    with pytest.raises(StoreError, match=r"no AWS credentials: .*profile \(home\)"):
        Store.open(uri)
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(StoreError, match=r"no AWS credentials: none were found: set AWS_ACCESS"):
        Store.open(uri)


@pytest.mark.parametrize(
    ("variable", "value", "uri"),
    [
        ("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json", "gs://bucket/x"),
        ("AZURE_STORAGE_ACCOUNT_KEY", "no base 64!", "abfss://box@acc.dfs.core.windows.net/x"),
        ("AWS_PROFILE", "nobody", "s3://bucket/x"),
    ],
)
def test_credentials_that_cannot_be_read_are_told(
    variable: str, value: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(StoreError, match=f"cannot .* {uri}: ") as caught:
        Store.open(uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("s3://bucket/x?endpont_override=a", "did you mean 'endpoint_override'"),
        ("gs://bucket/x?region=a", "unknown option 'region'"),
        ("gs://", "no bucket"),
        ("az://container/x", "whose account"),
        ("abfss://container/x", r"an Azure store is abfss://CONTAINER@ACCOUNT"),
        ("abfss://@account.dfs.core.windows.net/x", r"an Azure store is"),
        ("hdfs://host/x", r"unknown scheme 'hdfs'.* or a folder"),
    ],
)
def test_a_url_that_means_no_store_is_told_what_does(
    uri: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(StoreError, match=told):
        Store.open(uri)


def test_the_usual_url_of_azure_names_container_and_account() -> None:
    place = parse_place("abfss://box@acc.dfs.core.windows.net/a/b")
    assert (place.bucket, place.path, place.config["account_name"]) == ("box", "a/b", "acc")
    assert place.shown == "abfss://box@acc.dfs.core.windows.net/a/b"
