"""Tasks on images: the counts of the real data, own data in every form, helpful errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from image_files import CLASS_NAMES, as_folder, as_parquet, as_tar, in_class_order
from image_samples import labelled_samples
from samples import raised_by, real_data

from recipe_ray.data.images import ImageEncoder, ImageSample
from recipe_ray.data.sources import Locations
from recipe_ray.tasks.derived import CATDOG_TEST_SHARE, CatDog
from recipe_ray.tasks.task import TASKS, Labelled, Split, Task


def own(train: Path, test: Path | None = None, **fields: Any) -> Task:
    """Return the task on own images at these paths."""
    paths = {"path_train": str(train), "path_test": str(test or train)}
    task: Task = TASKS.parse({"name": "images", "class_names": CLASS_NAMES, **paths, **fields})
    return task


def pairs(loaded: Labelled) -> list[tuple[bytes, int]]:
    """Return encoded images with their labels."""
    return [(s.data, int(n)) for s, n in zip(loaded.samples, loaded.labels, strict=True)]


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [
        ("waste", 5987, 2511, 2),
        ("catdog", 5000, 2500, 2),
        ("gtsrb", 4230, 1410, 2),
        ("gtsrb43", 2150, 645, 43),
        ("cifar10", 50_000, 10_000, 10),
    ],
)
def test_the_tasks_of_the_data_folder_have_their_counts(
    name: str, train: int, test: int, classes: int
) -> None:
    folder = real_data()
    task: Task = TASKS.parse(name)
    splits: dict[Split, int] = {"train": train, "test": test}
    for split, count in splits.items():
        loaded = task.load(split, Locations(folder, folder))
        assert len(loaded) == count
        assert set(loaded.labels.tolist()) == set(range(classes))
        first = ImageEncoder(32)(loaded.samples[:2], np.arange(2))
        assert first.pixels.shape == (2, 3, 32, 32)
    assert task.num_labels == classes


def test_folder_parquet_and_tar_give_the_same_task(tmp_path: Path, places: Locations) -> None:
    samples = in_class_order()
    paths = [
        as_folder(tmp_path / "classes", samples, CLASS_NAMES),
        as_parquet(tmp_path / "images.parquet", samples),
        as_tar(tmp_path / "images.tar", samples),
    ]
    loaded = [pairs(own(path).load("test", places)) for path in paths]
    assert loaded == [[(sample.data, sample.label) for sample in samples]] * 3


def test_class_folders_count_as_the_task_names_them_not_by_the_alphabet(
    tmp_path: Path, places: Locations
) -> None:
    folder = as_folder(tmp_path / "classes", in_class_order(), ("zebra", "bee", "cow", "ant"))
    task = own(folder, class_names=["zebra", "bee", "cow", "ant"])
    expected = {sample.data: sample.label for sample in in_class_order()}
    assert dict(pairs(task.load("test", places))) == expected


def test_a_folder_in_the_layout_of_gtsrb_is_read_by_its_numbers(
    tmp_path: Path, places: Locations
) -> None:
    names = tuple(f"{number:05d}" for number in range(43))
    every = [ImageSample(sample.data, n) for n, sample in enumerate(labelled_samples(43))]
    folder = as_folder(tmp_path / "signs", every, names)
    paths = {"path_train": str(folder), "path_test": str(folder)}
    task: Task = TASKS.parse({"name": "gtsrb43", **paths})
    assert task.load("test", places).labels.tolist() == list(range(43))


def test_a_class_folder_of_another_name_lists_the_classes(
    tmp_path: Path, places: Locations
) -> None:
    folder = as_folder(tmp_path / "classes", in_class_order(), ("ant", "bee", "cow", "fox"))
    said = raised_by(lambda: own(folder).load("test", places))
    assert "label 'fox' is not one of: 0 ant, 1 bee, 2 cow, 3 dog" in said


def test_a_class_without_a_test_image_is_named(tmp_path: Path, places: Locations) -> None:
    folder = as_folder(tmp_path / "classes", in_class_order()[:9], CLASS_NAMES)
    assert "no sample of 'dog'" in raised_by(lambda: own(folder).load("test", places))
    (folder / "dog").mkdir()
    assert "dog has no image" in raised_by(lambda: own(folder).load("test", places))


def test_a_label_out_of_range_and_a_missing_image_name_their_row(
    tmp_path: Path, places: Locations
) -> None:
    samples = labelled_samples(5)
    file = as_parquet(tmp_path / "a.parquet", [*samples, ImageSample(samples[0].data, 4)])
    said = raised_by(lambda: own(file).load("test", places))
    assert "task 'images' (test): row 6: label '4' is not one of" in said
    file = as_parquet(tmp_path / "b.parquet", [*samples, ImageSample(b"", 1)])
    said = raised_by(lambda: own(file).load("test", places))
    assert "row 6: column 'image' holds nothing, not the bytes of an image" in said


def test_own_images_need_classes_and_both_paths() -> None:
    with pytest.raises(ValueError, match="class_names"):
        TASKS.parse({"name": "images", "path_train": "a", "path_test": "b"})
    with pytest.raises(ValueError, match="path_test"):
        TASKS.parse({"name": "images", "class_names": CLASS_NAMES, "path_train": "a"})


def test_a_task_on_no_hub_asks_for_paths(places: Locations) -> None:
    for name in ("waste", "gtsrb", "gtsrb43"):
        said = raised_by(lambda name=name: TASKS.parse(name).sources(places))
        assert f"task '{name}': give path_train and path_test" in said


def test_own_data_are_part_of_the_identity_and_where_they_lie_is_not(
    tmp_path: Path, places: Locations
) -> None:
    one = as_folder(tmp_path / "one", in_class_order(), CLASS_NAMES)
    two = as_folder(tmp_path / "two", in_class_order(), CLASS_NAMES)
    other = as_folder(tmp_path / "other", in_class_order(8), CLASS_NAMES)
    assert own(one).identity_at(places) == own(two).identity_at(places)
    assert own(one).identity_at(places) != own(other).identity_at(places)


def test_cats_and_dogs_of_the_hub_are_divided_once_and_for_all(
    places: Locations, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [pa.RecordBatch.from_pydict({"number": list(range(n, n + 500))}) for n in (0, 500)]
    sources = CatDog().sources(places)
    monkeypatch.setattr(type(CatDog.hub["train"]), "batches", lambda source: iter(rows))
    parts = {
        split: [row["number"] for batch in source.batches() for row in batch.to_pylist()]
        for split, source in sources.items()
    }
    assert sorted(parts["train"] + parts["test"]) == list(range(1000))
    assert 0.8 * CATDOG_TEST_SHARE < len(parts["test"]) / 1000 < 1.2 * CATDOG_TEST_SHARE
    identity = CatDog().identity_at(places)["sources"]
    assert identity["train"] != identity["test"]
