"""Event files, read back by TensorBoard's own reader."""

import logging
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from event_files import board_folder, scalars
from store_samples import s3_server
from tiny_cell import FIT, finished, tiny_plan, value

from recipe_ray.experiment.plan import Plan
from recipe_ray.learn.progress import Progress, Throughput
from recipe_ray.stages.stage import Stage
from recipe_ray.stages.tensorboard import Board
from recipe_ray.store.rows import Measurement
from recipe_ray.store.store import Store

__all__ = ["finished"]  # a fixture
LOSSES = {"por.trigger": 0.5, "mlm": 2.0}


def advances(steps: range) -> list[Throughput]:
    return [
        Throughput(Progress("poison", s, 6, {"mlm": 10.0 - s}), samples_per_s=8.0) for s in steps
    ]


def a_stage(folder: Path) -> Stage:
    return tiny_plan(folder, defenses=["none"]).cells[0].stages[0]


def tried(store: Store, stage: Stage, steps: range, value: float | None = None) -> None:
    """Leave the event file of one try at a stage, which ended well where there is a value."""
    with Board(store, stage, "tiny") as board:
        for advance in advances(steps):
            board.on_advance(advance)
        if value is not None:
            board.on_measured([Measurement("acc", value), Measurement("loss.mlm", 1.0, epoch=1)])


def test_every_stage_has_its_losses_and_speed_by_step_and_its_results(
    finished: tuple[Plan, Store],
) -> None:
    plan, store = finished
    for stage in plan.stages.values():
        shown = scalars(Path(store.uri) / board_folder(stage, "inline"))
        losses = {tag: points for tag, points in shown.items() if tag.startswith("loss/")}
        assert losses
        assert all(set(points) >= {1, FIT["steps"]} for points in losses.values())
        assert shown["samples_per_s"][FIT["steps"]] > 0
    last = plan.cells[0].last
    shown = scalars(Path(store.uri) / board_folder(last, "inline"))
    for metric in ("acc", "aasr", "masr"):
        assert shown[f"result/{metric}"][FIT["steps"]] == pytest.approx(value(store, last, metric))


def test_event_files_are_no_part_of_an_artifact(finished: tuple[Plan, Store]) -> None:
    _, store = finished
    for artifact in store.committed().values():
        assert not any("tfevents" in name for name in store.manifest(artifact)["files"])
    assert {artifact.kind for artifact in store.committed().values()} == {
        "backdoor",
        "purify",
        "finetune",
    }


def test_a_resumed_stage_goes_on_in_its_folder_without_double_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipe_ray.stages.tensorboard._POINT_EVERY_S", 0.0)
    store, stage = Store.open(tmp_path / "store"), a_stage(tmp_path)
    folder = Path(store.uri) / board_folder(stage, "tiny")
    tried(store, stage, range(1, 6))  # killed at step 5; its last checkpoint was at step 3
    # TensorBoard reads the files of a folder in the order of their names, which begin with a time
    (first,) = folder.iterdir()
    first.rename(folder / first.name.replace("tfevents.1", "tfevents.0"))
    tried(store, stage, range(4, 7), value=0.75)
    assert len(list(folder.iterdir())) == 2
    shown = scalars(folder)
    assert shown["loss/mlm"] == {step: 10.0 - step for step in range(1, 7)}
    assert shown["result/acc"] == {6: 0.75}
    assert "result/loss.mlm" not in shown


def test_workers_that_report_nothing_leave_no_file(tmp_path: Path) -> None:
    store, stage = Store.open(tmp_path / "store"), a_stage(tmp_path)
    with Board(store, stage, "tiny") as board:
        board.on_measured([])  # as in every rank but the first
    assert not (tmp_path / "store" / "tensorboard").exists()


def test_a_remote_store_has_the_whole_file_at_the_end_and_this_machine_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stage = a_stage(tmp_path)
    with s3_server() as options:
        uri = f"s3://bucket/{tmp_path.name}?{options}"
        tried(Store.open(uri), stage, range(1, 7), value=0.5)
        filesystem, root = pafs.FileSystem.from_uri(uri)
        here = tmp_path / "downloaded"
        here.mkdir()
        pafs.copy_files(
            f"{root}/{board_folder(stage, 'tiny')}",
            str(here),
            source_filesystem=filesystem,
            destination_filesystem=pafs.LocalFileSystem(),
        )
        assert Store.open(uri).committed() == {}
    assert scalars(here)["result/acc"] == {6: 0.5}
    assert list(tmp_path.glob("recipe-ray-events-*")) == []


def test_where_no_event_can_be_written_the_stage_goes_on_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, stage = Store.open(tmp_path / "store"), a_stage(tmp_path)
    (tmp_path / "store" / "tensorboard").write_text("in the way")
    with caplog.at_level(logging.WARNING, "recipe_ray"):
        tried(store, stage, range(1, 7), value=0.5)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "no more event files of this stage" in warning
