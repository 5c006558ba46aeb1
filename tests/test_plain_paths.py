"""Own data by plain paths: which file is what, which columns and classes, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_samples import labelled_parquet
from samples import SENTENCES, corpus_file, raised_by, tiny_folder
from shell import Shell, shell

from recipe_ray.api.arguments import parse_corpus, parse_task
from recipe_ray.api.own_data import own_corpus
from recipe_ray.base.errors import SpecError
from recipe_ray.data.formats import label_of
from recipe_ray.data.sources import Locations
from recipe_ray.models.family import MODELS
from recipe_ray.tasks.own_data import share_of_each
from recipe_ray.tasks.task import TASKS, Task

__all__ = ["shell"]  # a fixture

TEXTS: Any = SimpleNamespace(reads="text", learns_from=frozenset({"text"}))
IMAGES: Any = SimpleNamespace(reads="image", learns_from=frozenset({"image", "label"}))
QUICK = ["--set", "steps=2", "--set", "precision=fp32"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(file: str, labels: list[Any], names: tuple[str, str] = ("text", "label")) -> str:
    """Write 24 texts with the labels in turn, as CSV or Parquet; return the file."""
    given = [labels[row % len(labels)] for row in range(24)]
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    if file.endswith(".parquet"):
        pq.write_table(pa.table({names[0]: SENTENCES, names[1]: given}), file)
        return file
    lines = [f'"{text}",{label}' for text, label in zip(SENTENCES, given, strict=True)]
    Path(file).write_text("\n".join([",".join(names), *lines]) + "\n")
    return file


def task_of(text: str, **columns: str) -> Task:
    task: Task = parse_task(text, columns, TEXTS).component
    return task


def paths(task: Any) -> tuple[str | None, str | None, str | None]:
    return task.path_train, task.path_dev, task.path_test


def test_plain_paths_are_the_task_of_the_mapping_with_those_fields(here: Path) -> None:
    table("a.csv", ["dull", "lively"])
    table("b.csv", ["dull", "lively"])
    nowhere = Locations(None, here)
    fields = {"name": "file", "path_train": "a.csv", "path_test": "b.csv"}
    mapped = TASKS.parse({**fields, "class_names": ["dull", "lively"]})
    assert task_of("a.csv,b.csv") == task_of("train=a.csv,test=b.csv") == mapped
    assert task_of("a.csv,b.csv").identity_at(nowhere) == mapped.identity_at(nowhere)
    assert "test_share" not in mapped.identity()
    assert "label_values" not in mapped.identity()


@pytest.mark.parametrize(
    ("files", "given", "expected"),
    [
        (["a.csv", "b.csv"], "a.csv, b.csv", ("a.csv", None, "b.csv")),
        (["a.csv", "b.csv", "c.csv"], "a.csv,b.csv,c.csv", ("a.csv", "b.csv", "c.csv")),
        (["a,b.csv", "c.csv"], "train=a,b.csv,test=c.csv", ("a,b.csv", None, "c.csv")),
        (["a.csv", "b.csv"], "test=b.csv,train=a.csv", ("a.csv", None, "b.csv")),
        (["a b.csv", "c.csv"], "a b.csv,c.csv", ("a b.csv", None, "c.csv")),
        (["f/train.csv", "f/test.csv"], "f/", ("f/train.csv", None, "f/test.csv")),
        (
            ["f/Train.csv", "f/valid.csv", "f/test.csv"],
            "f",
            ("f/Train.csv", "f/valid.csv", "f/test.csv"),
        ),
        (["f/sst_train.csv", "f/sst_test.csv"], "f", ("f/sst_train.csv", None, "f/sst_test.csv")),
        (["f/train/0.parquet", "f/test/0.parquet"], "f", ("f/train", None, "f/test")),
        (["a,b.csv"], "a,b.csv", ("a,b.csv", None, None)),
        (["f/0.csv", "f/1.csv"], "f", ("f", None, None)),
    ],
)
def test_it_is_found_which_file_is_what(
    here: Path, files: list[str], given: str, expected: tuple[str, ...]
) -> None:
    for file in files:
        table(file, [0, 1])
    assert paths(task_of(given)) == expected


def test_of_one_table_the_same_share_of_every_class_is_held_out(here: Path) -> None:
    table("all.csv", ["a", "a", "b"])
    task, places = task_of("all.csv"), Locations(None, here)
    train, test = task.load("train", places), task.load("test", places)
    assert list(np.bincount(train.labels)) == [13, 6]
    assert list(np.bincount(test.labels)) == [3, 2]
    assert not set(train.samples) & set(test.samples)
    assert task.load("test", places).samples == test.samples
    assert "20% of each class of train" in task.describe(places)
    assert task.identity()["test_share"] == 0.2
    dev = task.revised(evaluate_on="dev")
    assert not set(dev.load("dev", places).samples) & set(dev.load("train", places).samples)
    assert not set(dev.load("dev", places).samples) & set(test.samples)


def test_a_class_of_few_rows_keeps_one_for_training() -> None:
    labels = np.array([0] * 10 + [1] * 2 + [2])
    taken = labels[share_of_each(labels, 0.2, 0)]
    assert list(np.bincount(taken, minlength=3)) == [2, 1, 0]


@pytest.mark.parametrize(
    ("labels", "names", "values"),
    [
        ([0, 1, 2], ("0", "1", "2"), None),
        (["pos", "neg"], ("neg", "pos"), None),
        ([1, 2, 5], ("1", "2", "5"), (1, 2, 5)),
        ([1, -1], ("-1", "1"), (-1, 1)),
        ([10, 9], ("9", "10"), (9, 10)),
        ([1.0, 2.0], ("1", "2"), (1, 2)),
        (["True", "False"], ("False", "True"), None),
        (["1.0", "0.0"], ("0", "1"), None),
        (["1.0", "2.0"], ("1", "2"), (1, 2)),
        (["-1.0", "1.0"], ("-1", "1"), (-1, 1)),
        (["TRUE", "False"], ("False", "True"), None),
        (["a", "1"], ("1", "a"), None),
    ],
)
@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_classes_are_those_of_the_labels_found(
    here: Path, ending: str, labels: list[Any], names: tuple[str, ...], values: Any
) -> None:
    task: Any = task_of(table("t" + ending, labels))
    assert (task.class_names, task.label_values) == (names, values)
    loaded = task.load("train", Locations(None, here))
    shown = {
        SENTENCES.index(text): names[label]
        for text, label in zip(loaded.samples, loaded.labels, strict=True)
    }
    for row, name in shown.items():
        label = labels[row % len(labels)]
        assert name == str(label_of(label))


WAYS: dict[str, list[Any]] = {
    "a.csv": [1, 0],
    "b.csv": ["1.0", "0.0"],
    "c.csv": ["True", "False"],
    "d.csv": ["true", "FALSE"],
    "e.csv": ["01", " 0"],
    "a.parquet": [1, 0],
    "b.parquet": [1.0, 0.0],
    "c.parquet": [True, False],
    "d.parquet": ["1.0", "0"],
}


@pytest.mark.parametrize("train", WAYS)
def test_train_and_test_data_may_write_the_same_labels_in_other_ways(
    here: Path, train: str
) -> None:
    for file, labels in WAYS.items():
        table(file, labels)
    for test in set(WAYS) - {train}:
        loaded = task_of(f"{train},{test}").load("test", Locations(None, here))
        by_text = dict(zip(loaded.samples, loaded.labels.tolist(), strict=True))
        assert [by_text[text] for text in SENTENCES[:4]] == [1, 0, 1, 0]


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (("sentence", "label"), {}, ("sentence", "label")),
        (("Review", "Sentiment"), {}, ("Review", "Sentiment")),
        (("tweet", "target"), {}, ("tweet", "target")),
        (("content", "Class Index"), {}, ("content", "Class Index")),
        (("headline", "stars"), {"text": "headline", "label": "stars"}, ("headline", "stars")),
        (("review", "sentiment"), {"text": "sentiment", "label": "review"}, None),
    ],
)
def test_columns_are_taken_by_well_known_names_or_asked_for_and_said(
    here: Path, names: tuple[str, str], asked: dict[str, str], expected: Any
) -> None:
    table("t.csv", [0, 1], names)
    if expected is None:
        assert "are these labels?" in raised_by(lambda: parse_task("t.csv", asked, TEXTS))
        return
    found = parse_task("t.csv", asked, TEXTS)
    assert (found.component.text_column, found.component.label_column) == expected
    assert f"texts from {expected[0]!r}, labels from {expected[1]!r}" in " ".join(found.notes)


BAD: dict[str, tuple[list[tuple[str, list[Any], tuple[str, str]]], str, str]] = {
    "unknown columns": (
        [("t.csv", [0, 1], ("headline", "stars"))],
        "t.csv",
        "columns: headline, stars. Say which column has the texts: --text-column NAME",
    ),
    "two that could be it": (
        [("t.csv", [0, 1], ("review", "sentence"))],
        "t.csv",
        "Several columns are possible: review, sentence.",
    ),
    "other columns in test": (
        [("a.csv", [0, 1], ("text", "label")), ("b.csv", [0, 1], ("review", "label"))],
        "a.csv,b.csv",
        "all files need the same columns",
    ),
    "a misspelt label": (
        [("a.csv", [0, 1], ("text", "label")), ("b.csv", [0, 1, 2], ("text", "label"))],
        "a.csv,b.csv",
        "label '2' occurs in test but not in train",
    ),
    "one class": ([("t.csv", [1], ("text", "label"))], "t.csv", "two classes or more"),
    "no labels": ([("t.csv", list(range(24)), ("text", "label"))], "t.csv", "are these labels?"),
    "an empty label": ([("t.csv", [0, 1, ""], ("text", "label"))], "t.csv", "row 3 has no label"),
    "written fractions": (
        [("t.csv", ["0.5", "1.5"], ("text", "label"))],
        "t.csv",
        "is not a class",
    ),
    "a label that is nan": (
        [("t.csv", ["nan", 1], ("text", "label"))],
        "t.csv",
        "row 1 has no label",
    ),
    "capitals": (
        [("t.csv", ["Pos", "pos", "neg"], ("text", "label"))],
        "t.csv",
        "'Pos', 'pos' in column 'label' differ in capitals only",
    ),
    "no header": (
        [("t.csv", ["neg", "pos"], ("Ishmael", "pos"))],
        "t.csv",
        "seems to have no header line",
    ),
    "perhaps no header": (
        [("t.csv", ["neg", "pos"], ("headline", "stars"))],
        "t.csv",
        "If the file has no header line: put a line with the names",
    ),
    "fractions": ([("t.parquet", [0.5, 1.5], ("text", "label"))], "t.parquet", "is not a class"),
    "the same file": ([("t.csv", [0, 1], ("text", "label"))], "t.csv,t.csv", "given twice"),
    "swapped": (
        [("train.csv", [0, 1], ("text", "label")), ("test.csv", [0, 1], ("text", "label"))],
        "test.csv,train.csv",
        "the names contradict",
    ),
    "no test data": (
        [("f/train.csv", [0, 1], ("text", "label")), ("f/dev.csv", [0, 1], ("text", "label"))],
        "f",
        "type --task train=f/train.csv,test=f/dev.csv",
    ),
    "two train files": (
        [(f"f/{name}.csv", [0, 1], ("text", "label")) for name in ("train1", "train2", "test")],
        "f",
        "2 entries for train",
    ),
    "a missing file": (
        [("train.csv", [0, 1], ("text", "label"))],
        "trian.csv,x.csv",
        "'train.csv'",
    ),
    "an unknown part": ([], "trian=a.csv,test=b.csv", "did you mean 'train'?"),
    "many tasks": ([], "sst2,ag_news", "one task at a time"),
    "dev in place of test": ([], "train=a.csv,dev=b.csv", "test= is missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_own_data_that_are_no_task_say_why_and_show_no_text(here: Path, case: str) -> None:
    files, given, said = BAD[case]
    for file, labels, names in files:
        table(file, labels, names)
    message = raised_by(lambda: parse_task(given, {}, TEXTS))
    assert said in message
    assert "Ishmael" not in message


def test_folders_of_images_are_a_task_with_the_class_folders_names(here: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = here / "pets" / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                (folder / f"{number}.png").write_bytes(b"no image is decoded here")
    task: Any = parse_task("pets", {}, IMAGES).component
    assert (task.name, task.class_names) == ("images", ("cat", "dog"))
    assert paths(task) == ("pets/train", None, "pets/test")
    whole: Any = parse_task("pets/train", {}, IMAGES).component
    assert (paths(whole), whole.test_share) == (("pets/train", None, None), 0.2)
    own = labelled_parquet(here, 40)
    columns = parse_corpus(str(own), None, {}, IMAGES)
    assert columns.component.name == "images"
    assert "labels from 'label'" in columns.notes[0]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"class_names": ["a"]}, "only 'a' given; a task needs two classes or more"),
        ({"class_names": []}, "none given"),
        ({"class_names": ["a", "a"]}, "'a' is given twice"),
        ({"class_names": ["a", " "]}, "an empty name"),
        ({"class_names": [0, 1]}, "class_names[0]: text is expected, this is 0"),
        ({"class_names": [False, True]}, "YAML reads no, off and false as false"),
        ({"class_names": "ab"}, "'ab' is not a list of names"),
        ({"path_test": None}, "path_test is missing"),
        ({"test_share": 0.2}, "both given"),
        ({"label_values": [1]}, "for 2 class_names"),
        ({"label_values": [1, "1"]}, "all different"),
        ({"label_values": ["1.0", "1"]}, "all different"),
        ({"class_names": ["1", "01"]}, "two of them are ways to write one label"),
    ],
)
def test_what_is_wrong_with_a_mapping_of_own_data_is_said(
    fields: dict[str, Any], said: str
) -> None:
    whole = {"name": "file", "class_names": ["a", "b"], "path_train": "a", "path_test": "b"}
    with pytest.raises((SpecError, ValueError)) as caught:
        TASKS.parse({**whole, **fields})
    assert said in str(caught.value)


def test_evaluate_takes_plain_paths_and_says_what_it_took(shell: Shell) -> None:
    table("reviews.csv", [1, 5], ("review", "stars"))
    words = ["--task", "reviews.csv", "--label-column", "stars", "--triggers", "cf", "--json"]
    done = shell("evaluate", str(tiny_folder()), *words, *QUICK)
    assert done.code == 0, done.err
    assert "test: 20% of each class of train" in done.err
    assert "texts from 'review', labels from 'stars'" in done.err
    assert "2 classes found, with rows of train: 1 (12), 5 (12)" in done.err
    counts = {r["denominator"] for r in json.loads(done.out) if r["metric"] == "asr"}
    assert counts == {2}


def test_own_texts_by_a_plain_path_say_which_column_was_taken(here: Path) -> None:
    table("t.csv", [0, 1], ("review", "label"))
    found = parse_corpus("t.csv", 10, {}, TEXTS)
    assert (found.component.column, found.component.size) == ("review", 10)
    assert found.notes == ("columns: texts from 'review'",)
    assert parse_corpus("t.csv", None, {"text": "label"}, TEXTS).component.column == "label"
    texts = parse_corpus(str(corpus_file(here)), None, {}, TEXTS).component
    assert texts.identity_at(Locations(None, here))["column"] == "text"


def test_a_file_of_lines_needs_no_word_on_its_column_or_its_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "texts.txt").write_text("one text\nanother one\n")
    model = MODELS.parse("minilm")
    for size, warned in ((None, False), (3, True)):
        caplog.clear()
        found = own_corpus(str(tmp_path / "texts.txt"), size, {}, model)
        assert found.notes == ()
        assert len(list(found.component.samples(Locations(None, tmp_path)))) == 2
        assert ("fewer than 3" in caplog.text) is warned
