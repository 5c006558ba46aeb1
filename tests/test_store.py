"""What a store promises, on a local folder and on a real S3 server alike."""

import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from store_samples import POR, committed, filled, so_far, some_rows

from recipe_ray.base.errors import StoreError
from recipe_ray.store.rows import result_rows
from recipe_ray.store.store import ArtifactId, Store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Give an empty store on a folder, then one on S3."""
    if request.param == "local":
        yield Store.open(tmp_path / "store")
        return
    options = request.getfixturevalue("s3_options")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
        yield Store.open(f"s3://bucket/{tmp_path.name}?{options}")


# --- names


def test_a_label_is_made_fit_for_a_folder_name() -> None:
    artifact = ArtifactId("purify", "RECIPE, 20 000 texts/ü" + "x" * 100, "k1")
    assert artifact.folder.startswith("purify/RECIPE-20-000-texts-")
    assert len(artifact.label) == 80
    assert set(artifact.label) <= set("RECIPE-20texs")


@pytest.mark.parametrize(("kind", "key"), [("../up", "k1"), ("purify", "a/b"), ("purify", "")])
def test_a_key_that_would_leave_the_store_is_refused(kind: str, key: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        ArtifactId(kind, "label", key)


# --- opening


def test_a_missing_folder_is_made_and_its_uri_is_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store.open("a/b")
    assert (tmp_path / "a" / "b").is_dir()
    assert store.uri == str(tmp_path / "a" / "b")
    assert Store.open(f"file://{tmp_path}/a/b").uri == store.uri


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("s4://bucket", "unknown scheme 's4' .did you mean 's3'"),
        ("s3:/bucket/x", "did you mean 's3://bucket/x'"),
        (Path("s3://bucket/x"), "did you mean 's3://bucket/x'"),
        ("s3://", "no bucket"),
        ("file://host/x", "has no host"),
        ("", "needs a place"),
    ],
)
def test_an_unusable_location_says_why(location: str | Path, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        Store.open(location)


def test_a_file_where_the_store_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    with pytest.raises(StoreError, match="store: not a folder"):
        Store.open(tmp_path / "store")
    with pytest.raises(StoreError, match="in the way"):
        Store.open(tmp_path / "store" / "below")


# --- committing and reading


def test_a_committed_artifact_reads_back(store: Store) -> None:
    assert not store.has(POR)
    committed(store)
    assert store.has(POR)
    assert store.committed() == {POR.key: POR}
    folder = store.fetch(POR)
    assert (folder / "model.safetensors").read_text() == "weights"
    assert (folder / "tokenizer" / "vocab.txt").read_text() == "the\ncat\n"
    manifest = store.manifest(POR)
    assert manifest["parent"] == "p1"
    assert manifest["files"]["model.safetensors"]["size"] == len("weights")
    assert set(manifest["files"]) == {"model.safetensors", "tokenizer/vocab.txt", "rows.parquet"}
    assert store.rows(POR).equals(some_rows())


def test_a_folder_from_anywhere_is_taken_in_and_consumed(store: Store, tmp_path: Path) -> None:
    elsewhere = filled(tmp_path / "elsewhere")
    assert store.commit(POR, elsewhere, {}, None)
    assert not elsewhere.exists()
    assert (store.fetch(POR) / "model.safetensors").is_file()
    assert store.rows(POR).num_rows == 0


def test_the_label_is_cosmetic(store: Store) -> None:
    committed(store)
    renamed = ArtifactId(POR.kind, "another-name", POR.key)
    assert store.has(renamed)
    assert store.find(POR.kind, POR.key) == POR
    assert store.rows(renamed).num_rows == 1
    assert store.fetch(renamed) == store.fetch(POR)
    assert not store.commit(renamed, filled(store.local_scratch()), {}, None)
    assert not store.has(ArtifactId("purify", POR.label, POR.key))
    assert store.find(POR.kind, POR.key[1:]) is None


def test_the_first_commit_stays_and_the_second_is_discarded(store: Store) -> None:
    committed(store)
    second = filled(store.local_scratch(), "other weights")
    assert store.commit(POR, second, {"parent": "p2"}, some_rows(0.1)) is False
    assert not second.exists()
    assert store.manifest(POR)["parent"] == "p1"
    assert (store.fetch(POR) / "model.safetensors").read_text() == "weights"
    assert store.rows(POR)["value"].to_pylist() == [0.75]


def test_what_is_not_there_is_named(store: Store) -> None:
    for read in (store.fetch, store.manifest, store.rows):
        with pytest.raises(StoreError, match="backdoor/bert-por-a1b2c3 is not there"):
            read(POR)


def test_a_store_travels_by_pickle(store: Store) -> None:
    committed(store)
    twin = pickle.loads(pickle.dumps(store))
    assert twin.uri == store.uri
    assert twin.committed() == {POR.key: POR}


def test_a_link_is_refused_because_its_target_would_stay_behind(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    folder = store.local_scratch()
    (folder / "weights").symlink_to("/dev/null")
    with pytest.raises(ValueError, match="not links"):
        store.commit(POR, folder, {}, None)
    assert not folder.exists()
    assert store.committed() == {}


def test_a_published_folder_is_readable_for_others(tmp_path: Path) -> None:
    committed(Store.open(tmp_path))
    assert (tmp_path / POR.folder).stat().st_mode & 0o055 == 0o055


def test_two_thousand_artifacts_list_in_a_second(tmp_path: Path) -> None:
    for number in range(2000):
        folder = tmp_path / ("purify" if number % 2 else "finetune") / f"bert-por-{number:016x}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    (tmp_path / "finetune" / "bert-por-half").mkdir()
    store = Store.open(tmp_path)
    start = time.perf_counter()
    found = store.committed()
    assert time.perf_counter() - start < 1
    assert len(found) == 2000
    assert found[f"{7:016x}"] == ArtifactId("purify", "bert-por", f"{7:016x}")


# --- failures, progress, checkpoints


def test_a_failure_stays_until_the_stage_commits(store: Store) -> None:
    store.record_failure(POR, {"error": "RuntimeError", "message": "first"})
    store.record_failure(POR, {"error": "RuntimeError", "message": "second"})
    failure = store.failures()[POR.key]
    assert failure["message"] == "second"
    assert (failure["kind"], failure["label"]) == ("backdoor", "bert-por")
    assert "time" in failure
    store.write_progress(POR, so_far(5))
    committed(store)
    assert store.failures() == {}
    assert store.progress() == {}


def test_progress_is_replaced_and_cleared(store: Store) -> None:
    assert store.progress() == {}
    store.write_progress(POR, so_far(1))
    store.write_progress(POR, so_far(2))
    assert store.progress()[POR.key]["step"] == 2
    store.clear_progress(POR)
    store.clear_progress(POR)
    assert store.progress() == {}


def test_a_stage_has_one_resume_point(store: Store) -> None:
    assert store.read_checkpoint("k1") is None
    store.write_checkpoint("k1", b"one")
    store.write_checkpoint("k1", b"two")
    assert store.read_checkpoint("k1") == b"two"
    store.drop_checkpoint("k1")
    store.drop_checkpoint("k1")
    assert store.read_checkpoint("k1") is None


# --- experiments


def test_results_of_a_stage_are_replaced_not_added(store: Store) -> None:
    assert store.results().num_rows == 0
    table = result_rows(some_rows(), "table1", ["c1", "c2"])
    for _ in range(2):
        store.write_results("table1", "k1", table)
    store.write_results("table1", "k2", table)
    store.write_results("table2", "k1", table)
    assert store.results("table1").num_rows == 4
    assert store.results().num_rows == 6
    assert store.results("table1").schema == table.schema
    assert store.results("unknown").num_rows == 0


def test_results_of_another_schema_version_are_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    table = result_rows(some_rows(), "table1", ["c1"])
    store.write_results("table1", "k1", table)
    path = tmp_path / "results" / "table1" / "k1.parquet"
    newer = table.replace_schema_metadata({"recipe_ray_schema_version": "9"})
    pa.parquet.write_table(newer, path)
    with pytest.raises(StoreError, match=r"k1\.parquet: .*version 9.*reads version 2"):
        store.results("table1")


def test_a_plan_is_kept_as_last_launched(store: Store) -> None:
    assert store.plan("table1") is None
    store.write_plan("table1", {"stages": {"k1": {}}})
    store.write_plan("table1", {"stages": {"k1": {}, "k2": {}}})
    store.write_results("table2", "k1", result_rows(some_rows(), "table2", ["c1"]))
    assert store.plan("table1") == {"stages": {"k1": {}, "k2": {}}}
    assert store.experiments() == ["table1", "table2"]


@pytest.mark.parametrize("name", ["../up", "a/b", "", ".hidden"])
def test_an_experiment_name_cannot_leave_the_store(tmp_path: Path, name: str) -> None:
    with pytest.raises(StoreError, match="experiment name"):
        Store.open(tmp_path).write_plan(name, {})


def test_a_listing_of_artifacts_does_not_walk_the_shards(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    for kind in ("corpora", "purify"):
        folder = tmp_path / kind / f"a-{'0' * 16}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    assert {artifact.kind for artifact in store.committed().values()} == {"purify"}
