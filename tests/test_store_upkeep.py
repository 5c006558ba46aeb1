"""`recipe-ray store`: damage is named, what takes space is told, what nothing needs can go."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from first_store import BACKDOOR, EXPERIMENT, FOLDER, LEAVES, commit, fill, plan
from shell import Shell, shell
from store_samples import driven, leave_lease, s3_server, so_far

from recipe_ray.base.errors import StoreError
from recipe_ray.base.process import Process
from recipe_ray.store.claims import CLAIMS, DELETING
from recipe_ray.store.export import export_experiment
from recipe_ray.store.store import ArtifactId, Store
from recipe_ray.store.upkeep import clear, garbage, usage
from recipe_ray.store.verify import verify_store

__all__ = ["shell"]  # fixture

# made from docs/results/sst2_two_attacks.parquet with the code of commit aa0c983 (schema version 1)
SCHEMA_1 = FOLDER.with_name("schema_1_store")
ORPHAN = ArtifactId("purify", "old", "feedfeed")
DEAD = "feedfeedfeed-1-1-0000"


@pytest.fixture(params=["folder", "S3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Return a small store in a folder, then one on an S3 server."""
    if request.param == "folder":
        fill(found := Store.open(tmp_path / "store"))
        yield found
        return
    with s3_server() as options:
        fill(found := Store.open(f"s3://bucket/{tmp_path.name}?{options}"))
        yield found


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """Return a copy of the store of the first release."""
    shutil.copytree(FOLDER, tmp_path / "store")
    return Store.open(tmp_path / "store")


def test_a_store_of_the_first_release_opens_reports_and_verifies(
    local: Store, shell: Shell
) -> None:
    assert sorted(local.committed()) == sorted([BACKDOOR.key, *LEAVES])
    assert (local.fetch(BACKDOOR) / "model" / "model.safetensors").is_file()
    report = shell("report", local.uri, "--json")
    assert report.code == 0
    assert "por" in report.out
    checked = shell("store", "verify", "--store", local.uri)
    assert (checked.code, checked.out.splitlines()[-1]) == (0, "nothing is damaged")


def test_a_store_of_schema_1_reports_with_floors_verifies_and_is_kept_as_schema_2(
    tmp_path: Path, shell: Shell
) -> None:
    shutil.copytree(SCHEMA_1, tmp_path / "store")
    store = Store.open(tmp_path / "store")
    shown = shell("report", store.uri, "--markdown").out
    published = (FOLDER.parents[1] / "docs/results/sst2_two_attacks.md").read_text()
    lines = [line for line in published.splitlines() if "por" in line and line.startswith("|")]
    assert [line for line in lines if line in shown] == lines != []
    assert shell("store", "verify", "--store", store.uri).code == 0
    assert shell("report", store.uri, "--export", "kept").code == 0
    assert shell("report", "kept", "--markdown").out == shown
    # a stage's own rows name no experiment: they may be compared with no other stage's
    own = [store.rows(artifact) for artifact in store.committed().values()]
    assert len({name for rows in own for name in rows["comparison"].to_pylist()}) == len(own) == 3


def test_each_damaged_thing_is_named_and_hides_no_other(local: Store, shell: Shell) -> None:
    root = Path(local.uri)
    (root / BACKDOOR.folder / "model" / "model.safetensors").write_text("Weights of bert-por")
    (root / LEAVES["p0"].folder / "manifest.json").write_text("{")
    (root / LEAVES["c0"].folder / "added.bin").write_text("x")
    rows = root / "results" / EXPERIMENT / "p0.parquet"
    rows.write_bytes(rows.read_bytes()[:-9])
    (root / "plans" / "other.json").write_text('{"stages": 3}')
    (root / "failures").mkdir()
    (root / "failures" / "k.json").write_text("[]")
    done = shell("store", "verify", "--store", root)
    assert done.code == 1
    for name in (
        "model.safetensors",
        "manifest.json",
        "added.bin",
        "p0.parquet",
        "other",
        "k.json",
    ):
        assert sum(name in line for line in done.out.splitlines()) == 1, name
    assert "6 things are damaged" in done.out
    told = json.loads(shell("store", "verify", "--store", root, "--json").out)
    assert len(told["damaged"]) == 6


def test_a_lost_manifest_is_damage_and_a_folder_of_notes_is_not(local: Store) -> None:
    (Path(local.uri) / LEAVES["p0"].folder / "manifest.json").unlink()
    (Path(local.uri) / "finetune" / "my-notes").mkdir()
    (said,) = verify_store(local).damaged
    assert "por-p0: no manifest.json" in said


def test_verify_and_du_read_a_whole_store_anywhere(store: Store) -> None:
    commit(store, ORPHAN, None, None)
    assert verify_store(store).damaged == []
    store.write_plan("twin", {**plan(), "experiment": "twin"})
    found = usage(store)
    assert found.total == sum(found.kinds.values()) + sum(found.folders.values())
    assert found.shared > 0
    assert found.own[EXPERIMENT] == found.own["twin"] == 0
    assert found.unnamed == found.kinds["purify"]


def test_what_no_plan_names_goes_and_everything_else_stays(store: Store) -> None:
    before = set(store.committed())
    commit(store, ORPHAN, None, None)
    store.write_checkpoint("p0", b"1234")
    store.write_checkpoint("unfinished", b"5")
    assert [(one.what, one.path) for one in garbage(store)] == [
        ("artifact", ORPHAN.folder),
        ("checkpoint", "checkpoints/p0"),
    ]
    assert garbage(store, keep_s=3600) == []
    assert len(clear(store)) == 2
    assert set(store.committed()) == before
    assert list(store.checkpoints()) == ["unfinished"]
    assert store.results().num_rows > 0
    assert garbage(store) == []
    assert verify_store(store).damaged == []


def test_ancestors_that_only_manifests_name_are_wanted(store: Store) -> None:
    leaf = {"p0": {"kind": "finetune", "label": "sst2", "seed": 0, "parent": None}}
    store.write_plan(EXPERIMENT, {"cells": [], "stages": leaf})  # as a search writes it
    assert [one.path for one in garbage(store)] == [LEAVES["c0"].folder]


def test_without_a_plan_rows_name_stages_and_a_damaged_plan_stops(local: Store) -> None:
    file = Path(local.uri) / "plans" / f"{EXPERIMENT}.json"
    file.unlink()
    assert garbage(local) == []
    file.write_text("{")
    with pytest.raises(StoreError, match="not known what is still wanted"):
        clear(local)


def test_gc_is_a_dry_run_without_yes(local: Store, shell: Shell) -> None:
    root = Path(local.uri)
    (root / "tensorboard" / "x" / "por.s0-gone").mkdir(parents=True)
    (root / "tensorboard" / "x" / "por.s0-gone" / "events.1").write_text("123")
    (root / "tensorboard" / "x" / "por.s0-p0").mkdir()
    (root / "tensorboard" / "x" / "por.s0-p0" / "events.1").write_text("123")
    (root / CLAIMS).mkdir()
    (root / CLAIMS / f"k.{DEAD}").write_text("")
    said = shell("store", "gc", "--store", root).out
    assert "this was a dry run" in said
    assert "por.s0-gone" in said
    assert (root / "tensorboard" / "x" / "por.s0-gone").is_dir()
    told = json.loads(shell("store", "gc", "--store", root, "--yes", "--json").out)
    assert [one["what"] for one in told["items"]] == ["claim", "events"]
    assert [one.name for one in (root / "tensorboard" / "x").iterdir()] == ["por.s0-p0"]
    assert list((root / CLAIMS).iterdir()) == []


def test_while_a_driver_or_a_stage_is_at_work_nothing_is_deleted(store: Store) -> None:
    commit(store, ORPHAN, None, None)
    with store.claims(60), pytest.raises(StoreError, match="another driver, process"):
        clear(store)
    running = ArtifactId("purify", "por", "k1")
    store.write_progress(running, so_far(1))
    with pytest.raises(StoreError, match="purify por runs on it"):
        clear(store)
    assert ORPHAN.key in store.committed()


def test_a_silent_driver_elsewhere_is_watched_for_a_lease(local: Store) -> None:
    commit(local, ORPHAN, None, None)
    leave_lease(local, DEAD, driven("x"))
    began = time.monotonic()
    deleted = clear(local, lease_s=1.5)
    assert time.monotonic() - began >= 1.5
    assert [one.path for one in deleted] == [ORPHAN.folder]


def test_a_sweep_that_begins_meanwhile_waits_for_the_deletion(local: Store) -> None:
    commit(local, ORPHAN, None, None)
    begun, seen = threading.Event(), []

    def begin() -> None:
        begun.set()
        local.write_plan("new", {"cells": [], "stages": {ORPHAN.key: {}}})
        seen.append(ORPHAN.key in local.committed())

    sweep = threading.Thread(target=begin)

    def while_deleting(one: object) -> None:
        sweep.start()
        begun.wait(10)
        sweep.join(0.7)
        assert seen == []  # it waits, and lists what is committed only afterwards

    clear(local, on_delete=while_deleting)
    sweep.join(30)
    assert seen == [False]
    assert not (Path(local.uri) / CLAIMS / f"{DELETING}.x").exists()


def test_a_plan_written_first_keeps_what_it_names(local: Store) -> None:
    commit(local, ORPHAN, None, None)
    local.write_plan("new", {"cells": [], "stages": {ORPHAN.key: {}}})
    assert clear(local) == []


def test_a_killed_gc_holds_nobody_up(local: Store) -> None:
    gone = Process(Process.this().machine, os.getpid(), "1")
    folder = Path(local.uri) / CLAIMS
    folder.mkdir()
    (folder / f"{DELETING}.{gone}-0000").write_text("")
    began = time.monotonic()
    local.write_plan("new", {"stages": {}})
    assert time.monotonic() - began < 5


def test_an_export_without_models_reports_and_says_what_it_lacks(
    store: Store, tmp_path: Path, shell: Shell
) -> None:
    done = export_experiment(store, EXPERIMENT, tmp_path / "out", ("log.txt",))
    assert (done.stages, done.missing) == (3, 0)
    copy = Store.open(tmp_path / "out")
    assert copy.committed().keys() == store.committed().keys()
    assert verify_store(copy).damaged == []
    assert copy.rows(LEAVES["p0"]) == store.rows(LEAVES["p0"])
    assert not list((tmp_path / "out").rglob("*.safetensors"))
    with pytest.raises(StoreError, match="--with-models"):
        copy.fetch(BACKDOOR)
    assert shell("report", tmp_path / "out").code == 0


def test_an_export_with_models_is_a_whole_store(store: Store, tmp_path: Path) -> None:
    commit(store, ORPHAN, None, None)
    export_experiment(store, EXPERIMENT, tmp_path / "out", None)
    copy = Store.open(tmp_path / "out")
    assert ORPHAN.key not in copy.committed()
    weights = copy.fetch(BACKDOOR) / "model" / "model.safetensors"
    assert weights.read_text() == "weights of bert-por"


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "tabel1"])
def test_an_export_of_a_wrong_name_is_refused(local: Store, shell: Shell, name: str) -> None:
    said = shell.fails("store", "export", name, "--out", "out", "--store", local.uri)
    assert "error:" in said
    assert not (shell.folder / "out").exists()


def test_an_export_follows_no_link_and_leaves_nothing_half_made(local: Store, shell: Shell) -> None:
    file = Path(local.uri) / BACKDOOR.folder / "log.txt"
    (shell.folder / "secret").write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(shell.folder / "secret")
    said = shell.fails("store", "export", EXPERIMENT, "--out", "out", "--store", local.uri)
    assert "a link out of its folder" in said
    assert not list(shell.folder.glob("out*"))
