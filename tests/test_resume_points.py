"""A resume point that cannot be used is dropped, and said; what is in an artifact's way is seen."""

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_cell import measured, tiny_plan

from recipe_ray.api.folder import check_free
from recipe_ray.base.errors import StoreError
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.plan import Plan
from recipe_ray.learn.progress import Throughput
from recipe_ray.stages.run import StoreCheckpoints
from recipe_ray.stages.stage import Stage
from recipe_ray.store.store import Store


def purification(plan: Plan) -> Stage:
    return next(stage for stage in plan.stages.values() if stage.name == "purify")


def stopped(plan: Plan, folder: Path) -> Store:
    """Return a store in which the purification was stopped after its second step."""
    store = Store.open(folder / "store")

    def stop(stage: Stage, advance: Throughput) -> None:
        if (advance.progress.phase, advance.progress.step) == ("purify", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_inline(
            [purification(plan)],
            store,
            Locations(None, folder),
            checkpoint_every_s=0,
            on_progress=stop,
        )
    return store


class Kept:
    """A plan, a resume point of its purification, and the rows that it ends with."""

    def __init__(self, folder: Path) -> None:
        self.plan = tiny_plan(folder, attacks=["none"])
        self.stage = purification(self.plan)
        data = stopped(self.plan, folder).read_checkpoint(self.stage.key)
        assert data is not None
        self.data = data
        calm = Store.open(folder / "calm")
        run_inline([self.stage], calm, Locations(None, folder))
        self.rows = measured(calm, self.stage)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    return Kept(tmp_path_factory.mktemp("kept"))


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def flipped(data: bytes, place: float) -> bytes:
    at = int(place * len(data))
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "without its last byte": lambda data: data[:-1],
    "a bit of a weight": lambda data: flipped(data, 0.5),
    "a bit of the index": lambda data: flipped(data, 0.97),
    "a bit of the seal": lambda data: flipped(data, 0.99999),
    "text": lambda data: b"not a checkpoint",
    "of another program": lambda data: saved({"epoch": 1, "model": {}}),
    "no mapping": lambda data: saved([1, 2]),
    "a pickle of code": lambda data: b"cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_resume_point_is_dropped_and_the_stage_begins_again(
    kept: Kept, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store = Store.open(tmp_path / "store")
    store.write_checkpoint(kept.stage.key, DAMAGES[damage](kept.data))
    steps: list[int] = []
    with caplog.at_level(logging.WARNING, "recipe_ray"):
        run_inline(
            [kept.stage],
            store,
            Locations(None, tmp_path),
            on_progress=lambda stage, advance: steps.append(advance.progress.step),
        )
    (said,) = [record.getMessage() for record in caplog.records if "resume point" in record.msg]
    assert kept.stage.key in said
    assert "begins again" in said
    assert steps[0] == 1
    assert measured(store, kept.stage) == kept.rows
    assert store.checkpoints() == {}
    log = (store.fetch(kept.stage.artifact) / "log.txt").read_text()
    assert "begins again" in log


def test_a_whole_resume_point_is_gone_on_from(kept: Kept, tmp_path: Path) -> None:
    for number, data in enumerate((kept.data, saved(_state(kept, tmp_path)))):  # and an older one
        store = Store.open(tmp_path / str(number))
        store.write_checkpoint(kept.stage.key, data)
        steps: list[int] = []
        run_inline(
            [kept.stage],
            store,
            Locations(None, tmp_path),
            on_progress=lambda stage, advance, steps=steps: steps.append(advance.progress.step),
        )
        assert steps[0] == 3
        assert measured(store, kept.stage) == kept.rows


def _state(kept: Kept, folder: Path) -> Any:
    store = Store.open(folder / "state")
    store.write_checkpoint(kept.stage.key, kept.data)
    return StoreCheckpoints(store, kept.stage.key).load()


def file_in_place(place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.write_text("in the way")


def folder_in_place(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "notes.txt").write_text("in the way")


def link_to_nothing(place: Path) -> None:
    place.parent.mkdir(parents=True)
    place.symlink_to("nowhere")


def file_for_the_kind(place: Path) -> None:
    place.parent.parent.mkdir(parents=True, exist_ok=True)
    place.parent.write_text("in the way")


def file_for_checkpoints(place: Path) -> None:
    place.parent.parent.mkdir(parents=True, exist_ok=True)
    (place.parent.parent / "checkpoints").write_text("in the way")


@pytest.mark.parametrize(
    "put",
    [file_in_place, folder_in_place, link_to_nothing, file_for_the_kind, file_for_checkpoints],
)
def test_what_is_in_the_way_of_an_artifact_is_found_before_any_work(
    kept: Kept, tmp_path: Path, put: Callable[[Path], None]
) -> None:
    store = Store.open(tmp_path / "store")
    put(tmp_path / "store" / kept.stage.artifact.folder)
    steps: list[Throughput] = []
    with pytest.raises(StoreError, match="in the way"):
        run_inline(
            [kept.stage],
            store,
            Locations(None, tmp_path),
            on_progress=lambda stage, advance: steps.append(advance),
        )
    assert steps == []


def test_an_empty_folder_is_in_nobodys_way(kept: Kept, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    (tmp_path / "store" / kept.stage.artifact.folder).mkdir(parents=True)
    run_inline([kept.stage], store, Locations(None, tmp_path))
    assert measured(store, kept.stage) == kept.rows


@pytest.mark.parametrize("out", ["file", "full", "link", ".", "/", "full/.."])
def test_an_out_that_no_folder_can_take_the_place_of_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(StoreError, match="name a new folder"):
        check_free(Path(out))
    (tmp_path / "empty").mkdir()
    check_free(Path("empty"))
    check_free(Path("new"))
