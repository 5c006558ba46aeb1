"""Names that stand in data never choose where a file is written, read or deleted."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from report_samples import por
from shell import Shell, shell
from store_samples import POR, committed, driven, leave_lease, some_rows

from recipe_ray.base.errors import StoreError
from recipe_ray.base.paths import path_part
from recipe_ray.cli.trackers import _metric
from recipe_ray.experiment.search_plan import SCORE
from recipe_ray.report.figures import draw
from recipe_ray.report.load import Recorded, export
from recipe_ray.report.sections import sections
from recipe_ray.stages.tensorboard import Board
from recipe_ray.store.rows import Measurement, encode_rows, measurement_table, result_rows
from recipe_ray.store.store import ArtifactId, Store

__all__ = ["shell"]  # a fixture

WRONG = [
    *("", ".", "..", ".hidden", "../up", "a/../../up", "/tmp/absolute", "a/b", "a\\b", "C:\\x"),
    *("a\0b", "a\nb", "a\x1b[31mb", "a:b", "what?", "a*", "<a>", "a|b", '"a"', "a ", "a.", " a"),
    *("x" * 201, "ä" * 101, "\udcff", "a\u202eb"),
]
GOOD = ["table1", "_x", "a..b", "tiny.confirm", "RECIPE-0.1_b", "größe", "a b", "x" * 200, "-a"]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_part_of_a_path_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(StoreError, match=r"experiment name '.* cannot be a part of a path: it .*"):
        path_part(name, "experiment name")


@pytest.mark.parametrize("name", [None, 3, b"bytes", ["a"]])
def test_what_is_no_text_is_no_name(name: object) -> None:
    with pytest.raises(StoreError, match="not text"):
        path_part(name, "experiment name")


@pytest.mark.parametrize("name", GOOD)
def test_a_name_stays_as_it_is(name: str) -> None:
    assert path_part(name, "experiment name") == name


def of_experiment(name: str) -> pa.Table:
    return por(experiment=name)


@pytest.mark.parametrize("name", [*WRONG, "OUTSIDE"])
def test_an_export_writes_below_its_folder_only(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    named = str(outside) if name == "OUTSIDE" else name.encode(errors="replace").decode()
    good = Recorded("good", of_experiment("good"), {"experiment": "good", "stages": {}})
    with pytest.raises(StoreError, match="cannot be a part of a path"):
        export([good, Recorded(named, of_experiment(named), None)], tmp_path / "kept")
    # nor is half of it written
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["--export", "--figures"])
def test_a_path_as_an_experiments_name_is_refused_by_the_command(shell: Shell, how: str) -> None:
    outside = shell.folder / "outside" / "x"
    score = Measurement(SCORE, 0.1, epoch=1)
    values = [Measurement("acc", 0.9), Measurement("masr", 0.8), score]
    common = {"kind": "finetune", "stage": "s", "model": "m", "attack": "a", "defense": "d"}
    rows = measurement_table(values, {**common, "seed": 0, "task": "t", "weight_factor": 1.0})
    Path("rows.parquet").write_bytes(encode_rows(result_rows(rows, str(outside), ["c"])))
    said = shell.fails("report", "rows.parquet", how, "kept")
    assert f"experiment name '{str(outside)[:40]}" in said
    assert "cannot be a part of a path: it holds /" in said
    assert not outside.parent.exists()
    assert not Path("kept").exists()
    assert shell("report", "rows.parquet", "--json").code == 0  # to look at it is harmless


@pytest.mark.parametrize("name", WRONG)
def test_a_store_takes_no_such_name(tmp_path: Path, name: str) -> None:
    store = Store.open(tmp_path / "store")
    table = result_rows(some_rows(), "x", ["c"])
    for use in (
        lambda: store.write_plan(name, {}),
        lambda: store.plan(name),
        lambda: store.results(name),
        lambda: store.write_results(name, "k1", table),
        lambda: store.write_results("table1", name, table),
        lambda: store.failure(name),
        lambda: Board(store, _stage(), name),
    ):
        with pytest.raises(StoreError, match="cannot be a part of a path"):
            use()
    assert list(tmp_path.iterdir()) == [tmp_path / "store"]
    assert list((tmp_path / "store").iterdir()) == []


def _stage() -> Any:
    class Named:
        artifact = POR

    return Named()


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/../../b", "a//b", "a/./b", "a\0"])
def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    store = Store.open(tmp_path)
    committed(store)
    file = tmp_path / POR.folder / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["files"][name] = {"sha256": "", "size": 0}
    file.write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="damaged manifest: the name of a file"):
        store.fetch(POR)


def test_a_file_that_could_not_be_read_back_is_not_committed(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    folder = store.local_scratch()
    (folder / "what?").write_text("x")
    with pytest.raises(StoreError, match="cannot be a part of a path"):
        store.commit(ArtifactId("backdoor", "x", "k"), folder, {}, None)
    assert store.committed() == {}


def test_a_drivers_note_cannot_choose_which_file_is_deleted(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.write_plan("mine", {"stages": {}})
    file = leave_lease(store, "d1", driven("mine"))
    old = {**json.loads(file.read_text()), "driver": "../plans/mine"}
    file.write_text(json.dumps({**old, "time": "2020-01-01T00:00:00+00:00"}))
    with store.claims(60):
        pass
    assert store.plan("mine") is not None
    assert not file.exists()


def test_what_a_file_manager_left_is_no_experiment(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.write_results("table1", "k1", result_rows(some_rows(), "table1", ["c"]))
    for folder in ("results", "plans"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / ".DS_Store").write_bytes(b"\0")
    assert store.experiments() == ["table1"]
    assert store.results().num_rows == 1


@pytest.mark.parametrize("trigger", ["..", ".", "../..", "/etc"])
def test_a_trigger_is_no_path_in_a_tracker(trigger: str) -> None:
    parts = _metric({"metric": "asr", "trigger": trigger, "label": 0}).split("/")
    assert len(parts) == 3
    assert not parts[1].startswith(".")


def test_figures_are_named_after_names_only(tmp_path: Path) -> None:
    found = sections([Recorded("../up", of_experiment("../up"), None)])
    with pytest.raises(StoreError, match="cannot be a part of a path"):
        draw(found, tmp_path / "figures")
    assert list(tmp_path.iterdir()) == []


def test_rows_that_name_no_experiment_are_said_to_be_none(shell: Shell) -> None:
    rows = of_experiment("x")
    nothing = pa.array([None] * rows.num_rows, pa.string())
    Path("rows.parquet").write_bytes(encode_rows(rows.set_column(0, "experiment", nothing)))
    assert "rows.parquet: not result rows" in shell.fails("report", "rows.parquet")
