"""Pictures of patches: kept by a fine-tuning, drawn by a report that reads no data."""

from pathlib import Path

import numpy as np
import pytest
from samples import task_fields, tiny_folder
from stub_vision import SIZE, StubRef, image_file

from recipe_ray.base.errors import DataError
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import collect, plan_record, run_inline
from recipe_ray.experiment.plan import Cell, Plan
from recipe_ray.experiment.spec import Launch
from recipe_ray.report.charts import svg
from recipe_ray.report.load import recorded, store_at
from recipe_ray.report.run_figures import trigger_pictures
from recipe_ray.stages.finetune import NUM_PICTURES, FinetuneStage
from recipe_ray.store.store import Store
from recipe_ray.triggers.patch import PatchTrigger
from recipe_ray.triggers.pictures import CLEAN_PICTURE, FILE, Grid, read

TRIGGERS = ("yellow-red", "cyan-magenta-8")
FIT = {"steps": 1, "batch_size": 8, "precision": "fp32"}


def finetuned(folder: Path, stage: FinetuneStage) -> Store:
    """Run a fine-tuning as the one cell of an experiment; return the store."""
    store = Store.open(folder / "store")
    plan = Plan("pictures", "", Launch(), (Cell("c", (stage,)),), {stage.key: stage})
    run_inline([stage], store, Locations(None, folder))
    collect(plan, store, stage)
    store.write_plan(plan.name, plan_record(plan))
    return store


def on_images(folder: Path, name: str = "one", triggers: tuple[str, ...] = TRIGGERS) -> Store:
    splits = ("train", "test")
    paths = {f"path_{split}": str(image_file(folder, 24, f"{split}.parquet")) for split in splits}
    names = ["dark", "grey", "light"]
    task = {"name": "images", "title": name, "class_names": names, **paths}
    stage = FinetuneStage(model=StubRef(), task=task, triggers=triggers, fit=FIT, seed=0)
    return finetuned(folder, stage)


def kept(store: Store) -> list[Path]:
    found = (store.fetch(artifact) / FILE for artifact in store.committed().values())
    return [file for file in found if file.is_file()]


def test_a_fine_tuning_keeps_test_images_with_each_patch_where_it_belongs(tmp_path: Path) -> None:
    [file] = kept(on_images(tmp_path))
    grid = read(file)
    assert list(grid.rows) == [CLEAN_PICTURE, *TRIGGERS]
    assert {pixels.shape for pixels in grid.rows.values()} == {(NUM_PICTURES, 3, SIZE, SIZE)}
    for trigger in TRIGGERS:
        patch = PatchTrigger.parse(trigger).board()
        width = patch.shape[-1]
        assert (grid.rows[trigger][:, :, -width:, -width:] == patch).all()
        untouched = grid.rows[trigger].copy()
        untouched[:, :, -width:, -width:] = grid.rows[CLEAN_PICTURE][:, :, -width:, -width:]
        assert np.array_equal(untouched, grid.rows[CLEAN_PICTURE])


def test_without_triggers_and_for_texts_nothing_is_kept(tmp_path: Path) -> None:
    assert kept(on_images(tmp_path, triggers=())) == []
    model = {"name": "bert", "source": str(tiny_folder())}
    task = task_fields(tmp_path)
    stage = FinetuneStage(model=model, task=task, triggers=("cf",), fit=FIT, seed=0)
    assert kept(finetuned(tmp_path / "texts", stage)) == []


def test_a_report_draws_one_grid_for_an_input_size_without_reading_data(tmp_path: Path) -> None:
    on_images(tmp_path)
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").unlink()
    place = str(tmp_path / "store")
    store = store_at(place)
    assert store is not None
    [figure] = trigger_pictures(recorded(place), store)
    assert figure.name == f"triggers-{SIZE}"
    [panel] = figure.panels
    drawn = svg(panel)
    assert drawn.count("data:image/png;base64,") == 1
    assert all(f">{name}</text>" in drawn for name in (CLEAN_PICTURE, *TRIGGERS))


def test_a_folder_of_rows_alone_is_no_store(tmp_path: Path) -> None:
    assert store_at(str(tmp_path)) is None


def test_a_grid_reads_back_as_it_was_and_another_picture_is_refused(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 3, 7, 7)).astype(np.uint8)
    grid = Grid(dict(zip((CLEAN_PICTURE, "a", "b"), pixels, strict=True)))
    grid.save(tmp_path / FILE)
    again = read(tmp_path / FILE)
    assert again.triggers == ("a", "b")
    assert all(np.array_equal(again.rows[name], grid.rows[name]) for name in grid.rows)
    (tmp_path / "other.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"other\.png: not a grid of triggers"):
        read(tmp_path / "other.png")
