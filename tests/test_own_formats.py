"""The files that people have: names, compressions, headers, folders and what lies about in them."""

import bz2
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import CLASS_NAMES, as_folder, as_parquet, as_tar, in_class_order, tar_of
from image_samples import labelled_samples
from samples import raised_by
from table_samples import CSV, LINES, ROWS, put, rows, wrong

from recipe_ray.data.formats import label_of
from recipe_ray.data.image_sources import open_images
from recipe_ray.data.sources import Locations, column_texts, open_path
from recipe_ray.tasks.task import TASKS, Task

PNG = labelled_samples(1)[0].data
PACKERS = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}
FILES: dict[str, bytes] = {
    "a.csv": CSV,
    "a.CSV": CSV,
    "blank lines.csv": b"\n" + CSV + b"\n\r\n \n,\n , \n",
    "windows.csv": CSV.replace(b"\n", b"\r\n"),
    "bom.csv": b"\xef\xbb\xbf" + CSV,
    "semicolons.csv": CSV.replace(b",", b";"),
    "tabs.csv": CSV.replace(b",", b"\t"),
    "bars.csv": CSV.replace(b",", b"|"),
    "excel.csv": b"sep=;\r\n" + CSV.replace(b",", b";").replace(b"\n", b"\r\n"),
    "quoted.csv": b'"text","label"\n"one","0"\n"two","1"\n',
    "a.tsv": CSV.replace(b",", b"\t"),
    "a.TSV": CSV.replace(b",", b"\t") + b"\n\n",
    "quoted.tsv": b'"text"\t"label"\n"one"\t"0"\n"two"\t"1"\n',
    "a.jsonl": LINES,
    "a.ndjson": LINES,
    "lines.json": LINES,
    "list.json": json.dumps(ROWS).encode(),
    "indented.json": json.dumps(ROWS, indent=2).encode(),
    "bom.JSON": b"\xef\xbb\xbf " + json.dumps(ROWS).encode() + b" \n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_table_is_read_however_it_is_named_and_written(tmp_path: Path, name: str) -> None:
    assert rows(put(tmp_path, name, FILES[name])) == ROWS


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "list.json", "A.CSV"])
def test_a_packed_file_is_its_content(tmp_path: Path, name: str, packing: str) -> None:
    content = FILES.get(name, CSV)
    file = put(tmp_path, name + packing, PACKERS[packing](content))
    assert rows(file) == ROWS
    plain = put(tmp_path, "plain" + Path(name).suffix.lower(), content)
    assert open_path(file, "corpus").identity() == open_path(plain, "corpus").identity()


def test_packed_lines_of_text_are_a_corpus(tmp_path: Path) -> None:
    file = put(tmp_path, "texts.TXT.GZ", gzip.compress(b"one\ntwo\n"))
    assert list(column_texts(open_path(file, "corpus"), "text", "corpus")) == ["one", "two"]


@pytest.mark.parametrize("packing", PACKERS)
def test_a_damaged_packed_file_is_named(tmp_path: Path, packing: str) -> None:
    whole = PACKERS[packing](CSV * 1000)
    assert "cannot be unpacked" in wrong(put(tmp_path, f"a.csv{packing}", whole[:-9]))
    assert "cannot be unpacked" in wrong(put(tmp_path, f"b.csv{packing}", b"secret" * 9))


def test_the_case_of_an_ending_is_no_part_of_the_identity(tmp_path: Path) -> None:
    one, two = put(tmp_path, "a.csv"), put(tmp_path, "b.CSV")
    assert open_path(one, "corpus").identity() == open_path(two, "corpus").identity()


def test_quotes_in_a_tsv_are_characters_unless_a_writer_of_csv_put_them(tmp_path: Path) -> None:
    content = 'sentence\tlabel\n" it is\t0\n"so" it was\t1\n"whole"\t0\n"He said ""no"""\t1\n'
    texts = [row["sentence"] for row in rows(put(tmp_path, "a.tsv", content.encode()))]
    assert texts == ['" it is', '"so" it was', '"whole"', 'He said "no"']


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_without_a_header_says_so_and_shows_no_text(tmp_path: Path, name: str) -> None:
    tab = "\t" if name == "a.tsv" else ","
    for first in (f"secret{tab}1", f"the secret film is good{tab}pos", f"1{tab}secret"):
        file = put(tmp_path, name, f"{first}\nmore{tab}0\n".encode())
        said = raised_by(lambda f=file: list(column_texts(open_path(f, "corpus"), "text", "c")))
        assert "seems to have no header line" in said
        assert "text,label" in said
        assert "secret" not in said


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_first_line_whose_label_comes_again_is_no_header(tmp_path: Path, name: str) -> None:
    tab = "\t" if name == "a.tsv" else ","
    lines = [f"secret{tab}pos", f"more{tab}neg", f"other{tab}pos"]
    file = put(tmp_path, name, "\n".join(lines).encode())
    said = raised_by(lambda: list(column_texts(open_path(file, "corpus"), "text", "c")))
    assert "seems to have no header line" in said
    assert "secret" not in said


def test_names_of_a_parquet_file_are_never_taken_for_a_first_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"0": ["one"], "pos": ["pos"]}), tmp_path / "a.parquet")
    source = open_path(tmp_path / "a.parquet", "corpus")
    assert "columns: 0, pos" in raised_by(lambda: list(column_texts(source, "text", "c")))


ENCODED = 'text\nsecret caf\u00e9 "1"\n'


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt", ".jsonl", ".json", ".csv.gz"])
@pytest.mark.parametrize(
    ("encoding", "named"),
    [
        ("utf-16", "is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8"),
        ("utf-16-le", "is UTF-16LE; save it"),
        ("utf-16-be", "is UTF-16BE; save it"),
        ("utf-32", "is UTF-32; save it"),
        ("utf-32-be", "is UTF-32BE; save it"),
        ("latin-1", "is not UTF-8 text: invalid continuation byte; if it is Windows-1252"),
    ],
)
def test_a_text_in_another_encoding_says_which_and_how_to_convert_it(
    tmp_path: Path, ending: str, encoding: str, named: str
) -> None:
    content = ENCODED.encode(encoding)
    packed = gzip.compress(content) if ending.endswith(".gz") else content
    assert named in wrong(put(tmp_path, f"a{ending}", packed))


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl"])
def test_what_is_packed_under_a_plain_name_is_named(tmp_path: Path, name: str) -> None:
    for content, how in ((gzip.compress(CSV), "gzip"), (b"PK\x03\x04\xff", "zip")):
        assert f"is packed ({how}); unpack it" in wrong(put(tmp_path, name, content))
    assert "not text: it contains zero bytes" in wrong(put(tmp_path, name, b"secret\0" * 9))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"text,text\nsecret,1\n", "the header has 2 names, but only 1 different"),
        ("a.tsv", b"text\tlabel\nsecret\tsecret\t1\n", "row 1 has 3 fields, the header 2"),
        ("a.json", b'[{"text": "secret"}, 5]', "item 2 is a int, not an object"),
        ("a.json", b'[{"text": "secret"}', "after item 1: expected , or ]"),
        ("a.json", b'[{"text": "secret"},', "the list does not end"),
        ("a.json", b'[{"text": "secret"}] secret', "more after item 1"),
        ("a.json", b'[{"text": secret}]', "item 1 is not JSON"),
        ("a.json", b'{"text": {"0": "secret"}, "label": {"0": 1}}', "orient='records'"),
        ("a.json", b'[{"text": ' + b"[" * 100_000, "item 1 is not JSON"),
        ("a.parquet.gz", b"secret", "format '.parquet.gz' is not one of"),
        (
            "a.xlsx",
            b"secret",
            "a.xlsx: a spreadsheet; save it as CSV (format '.xlsx' is not one of",
        ),
        ("a.zip", b"secret", "an archive or packed; unpack it"),
        ("a.pkl", b"secret", "a pickle, which is a program; save it as Parquet"),
        ("a.sqlite3", b"secret", "a database; save the table"),
        ("noending", b"secret", "its name has none of the endings .parquet"),
        ("a.csv", b"PK\x03\x04\0\0[Content_Types].xml secret", "is a spreadsheet or another"),
        ("a.csv", b"<!DOCTYPE html>\n<p>secret", "a.csv is a web page; download the file itself"),
        ("a.jsonl", b"\xef\xbb\xbf\n<HTML>secret", "is a web page"),
        ("a.txt", b" <html>secret", "is a web page"),
        ("a.parquet", b"<!doctype html>secret" * 9, "as Parquet: it is a web page"),
        ("a.arrow", b"\x80\x02secret" * 9, "as Arrow: it is a pickle"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    assert said in wrong(put(tmp_path, name, content))


LITTER = [
    *("Thumbs.db", "desktop.ini", ".DS_Store", "_SUCCESS", "_metadata", "_common_metadata"),
    *("._a.csv", ".a.csv.crc", "a.csv.crc", "_committed_12", ".ipynb_checkpoints/a.csv"),
    *("__MACOSX/._a.csv", ".part-0.csv", "ehthumbs.db", "ZbThumbnail.info", "Picasa.ini", "a.csv~"),
]
ABOUT = ["README.md", "classes.pdf", "wids.yaml"]  # what may lie beside data


def test_litter_in_a_folder_of_shards_is_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "part-0.csv"), put(tmp_path, "part-1.csv")
    identity = open_path(tmp_path, "corpus").identity()
    for name in LITTER + ABOUT:
        put(tmp_path, name, b"\0secret")
    assert rows(tmp_path) == ROWS * 2
    assert open_path(tmp_path, "corpus").identity() == identity


def test_litter_in_folders_of_images_is_passed_over(tmp_path: Path) -> None:
    folder = as_folder(tmp_path, in_class_order(), CLASS_NAMES)
    source = open_images(folder, "corpus", "label")
    before, identity = list(source.batches()), source.identity()
    for name in LITTER:
        put(folder, name, b"litter"), put(folder / "ant", name, b"litter")
    for name in (*ABOUT, "labels.csv"):
        put(folder, name, b"litter")
    again = open_images(folder, "corpus", "label")
    assert list(again.batches()) == before
    assert again.identity() == identity


def test_folders_that_begin_with_an_underscore_are_classes(tmp_path: Path) -> None:
    as_folder(tmp_path, in_class_order(), ("_noise", "bee", "cow", "dog"))
    put(tmp_path / "bee", "_DSC0001.JPG", PNG)
    batches = list(open_images(tmp_path, "task", "label", by_name=True).batches())
    names = [name for batch in batches for name in batch["label"].to_pylist()]
    assert (names.count("_noise"), names.count("bee")) == (3, 4)


def test_what_is_about_shards_is_passed_over_and_two_kinds_of_data_are_not(tmp_path: Path) -> None:
    as_tar(tmp_path / "0.tar", labelled_samples(4))
    for name in ("wids.json", "_SUCCESS", "README.md"):
        put(tmp_path, name, b"{}")
    assert len(tar_labels(tmp_path)) == 4
    put(tmp_path, "ant/0.png", PNG)
    assert "mixes class folders (ant, ...) and files (0.tar, ...)" in raised_by(
        lambda: tar_labels(tmp_path)
    )


@pytest.mark.parametrize(
    "name", ["a.tar.gz", "a.tgz", "a.zip", "a.tar.zst", "a.tar", "a.parquet.gz", "f/a.tar.gz"]
)
def test_packed_images_are_named_and_are_to_be_unpacked(tmp_path: Path, name: str) -> None:
    tar = as_tar(tmp_path / "b.bin", labelled_samples(4)).read_bytes()
    file = put(tmp_path, name, gzip.compress(tar))
    for place in {file, file.parent} - {tmp_path}:
        assert "packed" in raised_by(lambda p=place: tar_labels(p))
        assert "unpack it" in raised_by(lambda p=place: tar_labels(p))


@pytest.mark.parametrize(
    ("mark", "kind"),
    [
        ("_delta_log/0.json", "Delta"),
        (".hoodie/hoodie.properties", "Hudi"),
        ("metadata/v1.metadata.json", "Iceberg"),
        ("_versions/1.manifest", "Lance"),
    ],
)
def test_a_table_that_keeps_old_files_is_refused(tmp_path: Path, mark: str, kind: str) -> None:
    for place in ("a.csv", "label=0/a.csv"):
        put(tmp_path / place[:5], place), put(tmp_path / place[:5], mark, b"{}")
        assert f"is a table of {kind}" in wrong(tmp_path / place[:5])
        images = raised_by(lambda p=place[:5]: open_images(tmp_path / p, "task", "label"))
        assert f"is a table of {kind}" in images


ENDINGS = ["gif", "jfif", "TIF", "tiff", "JPG", "jpe", "bmp", "WebP", "pgm", "pbm"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_images_of_these_endings_are_read(tmp_path: Path, ending: str) -> None:
    put(tmp_path, f"ant/1.{ending}", PNG)
    (batch,) = open_images(tmp_path, "corpus", "label").batches()
    assert batch.to_pylist() == [{"image": PNG, "label": 0}]


def test_images_one_folder_too_high_say_where_they_are(tmp_path: Path) -> None:
    as_folder(tmp_path / "train", in_class_order(), CLASS_NAMES)
    said = raised_by(lambda: list(open_images(tmp_path, "corpus", "label").batches()))
    assert f"is it {tmp_path / 'train'}?" in said


def test_json_beside_shards_is_about_them_and_two_formats_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.csv"), put(tmp_path, "dataset_infos.json", b"{}")
    assert rows(tmp_path) == ROWS
    put(tmp_path, "a.csv.gz", gzip.compress(CSV))
    assert "mixes formats (.csv, .csv.gz)" in wrong(tmp_path)


def test_partitions_of_a_hive_layout_are_columns(tmp_path: Path) -> None:
    for label in (0, 1, 10):
        for lang in ("en", "de%20AT"):
            place = tmp_path / f"label={label}" / f"lang={lang}"
            place.mkdir(parents=True)
            pq.write_table(pa.table({"text": [f"{label} {lang}"]}), place / "part-0.parquet")
    put(tmp_path, "_SUCCESS", b"")
    found = rows(tmp_path)
    assert {"text": "10 de%20AT", "label": 10, "lang": "de AT"} in found
    assert len(found) == 6
    identity = open_path(tmp_path, "corpus").identity()
    (tmp_path / "label=10").rename(tmp_path / "label=2")
    assert open_path(tmp_path, "corpus").identity() != identity


def test_a_partition_that_its_file_has_too_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "label=0/a.csv")
    assert "a column 'label', which its folder's name gives too" in wrong(tmp_path)
    put(tmp_path, "other/a.csv")
    assert "it has the folders label=0, other: give one of them" in wrong(tmp_path)


def test_images_in_a_hive_layout_are_read(tmp_path: Path) -> None:
    for label in (0, 1):
        (tmp_path / f"label={label}").mkdir()
        pq.write_table(pa.table({"image": [PNG]}), tmp_path / f"label={label}" / "a.parquet")
    found = [b.to_pylist() for b in open_images(tmp_path, "corpus", "label").batches()]
    assert found == [[{"image": PNG, "label": label}] for label in (0, 1)]


def test_what_datasets_saves_to_disk_is_read(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list([{"text": str(n), "label": n % 2} for n in range(2500)])
    data.save_to_disk(tmp_path / "one", num_shards=3)
    assert rows(tmp_path / "one") == data.to_list()
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "both")
    assert "holds several splits (train, test); give one of them" in wrong(tmp_path / "both")
    assert rows(tmp_path / "both" / "train") == data.to_list()
    images = datasets.Dataset.from_list([{"image": {"bytes": PNG, "path": None}, "label": 3}])
    images.save_to_disk(tmp_path / "images")
    (batch,) = open_images(tmp_path / "images", "corpus", "label").batches()
    assert batch["image"].to_pylist()[0]["bytes"] == PNG


@pytest.mark.parametrize("packing", ["lz4", "zstd"])
@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
@pytest.mark.parametrize("words", [["one", "two"], pa.array(["one", "two"]).dictionary_encode()])
def test_an_arrow_file_that_is_compressed_within_is_refused(
    tmp_path: Path, packing: str, new: Any, words: Any
) -> None:
    content = pa.table({"text": words})
    options = pa.ipc.IpcWriteOptions(compression=packing)
    with new(str(tmp_path / "a.arrow"), content.schema, options=options) as writer:
        writer.write_table(content)
    assert "is compressed within; save it without compression" in wrong(tmp_path / "a.arrow")


@pytest.mark.parametrize("new", [pa.ipc.new_stream, pa.ipc.new_file])
def test_an_arrow_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path, new: Any) -> None:
    content = pa.table({"text": ["one"] * 12})
    file = tmp_path / "a.arrow"
    with new(str(file), content.schema) as writer:
        writer.write_table(content, max_chunksize=3)
    assert len(rows(file)) == 12
    whole = file.read_bytes()
    for cut in range(4, len(whole), 4):  # also between two batches
        assert "Arrow" in wrong(put(tmp_path, "b.arrow", whole[:cut]))


def test_a_saved_data_set_whose_shard_is_cut_or_lost_is_refused(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list([{"text": str(n)} for n in range(5000)])
    data.save_to_disk(tmp_path, num_shards=2)
    shard = sorted(tmp_path.glob("*.arrow"))[1]
    whole = shard.read_bytes()
    reader, ends = pa.BufferReader(whole), []
    messages = pa.ipc.MessageReader.open_stream(reader)
    for _ in messages:
        ends.append(reader.tell())
    assert len(ends) > 2
    for end in ends:
        shard.write_bytes(whole[:end])
        assert f"{shard.name} lacks the bytes that end an Arrow table" in wrong(tmp_path)
    shard.unlink()
    assert "does not exist" in wrong(tmp_path)


@pytest.mark.parametrize("name", ["../a.arrow", "/etc/passwd", "", 5, None])
def test_a_saved_data_set_names_no_file_elsewhere(tmp_path: Path, name: Any) -> None:
    put(tmp_path, "state.json", json.dumps({"_data_files": [{"filename": name}]}).encode())
    assert "lists no files of this folder" in wrong(tmp_path)


def task(tmp_path: Path, labels: list[str], names: tuple[str, ...] = ("no", "yes")) -> Task:
    """Return a task on a CSV with these labels."""
    put(tmp_path, "a.csv", "".join(["text,label\n", *(f"one,{n}\n" for n in labels)]).encode())
    paths = {f"path_{split}": str(tmp_path / "a.csv") for split in ("train", "test")}
    found: Task = TASKS.parse({"name": "file", "class_names": names, **paths})
    return found


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["1.0", "0.0", "1."], [1, 0, 1]),
        (["True", "False", "true", "FALSE"], [1, 0, 1, 0]),
        (["yes", " no", "1 ", "01"], [1, 0, 1, 1]),
    ],
)
def test_labels_may_be_written_as_other_programs_do(
    tmp_path: Path, written: list[str], expected: list[int]
) -> None:
    loaded = task(tmp_path, written).load("train", Locations(None, tmp_path))
    assert loaded.labels.tolist() == expected


@pytest.mark.parametrize("written", ["1.5", "-1", "2.0", "nan", "1e0", "", "truth", "1.0.0", "١"])
def test_other_labels_are_refused(tmp_path: Path, written: str) -> None:
    said = raised_by(lambda: task(tmp_path, [written]).load("train", Locations(None, tmp_path)))
    assert "is not one of: 0 no, 1 yes" in said


@pytest.mark.parametrize(
    ("names", "written", "expected"),
    [
        (("1", "2"), ["1", "2", "1.0", "2.0"], [0, 1, 0, 1]),
        (("1", "0"), ["1", "0", "1.0"], [0, 1, 0]),
        (("2", "other", "1"), ["2.0", "other", "01"], [0, 1, 2]),
        (("True", "False"), ["True", "false", "TRUE"], [0, 1, 0]),
        (("true", "false", "half"), ["true", "half", "1", "2"], [0, 2, 1, 2]),
        (("13", "38"), ["0", "1", "13", "38.0"], [0, 1, 0, 1]),
    ],
)
def test_a_label_means_the_class_of_its_name_however_it_is_written(
    tmp_path: Path, names: tuple[str, ...], written: list[str], expected: list[int]
) -> None:
    found: Any = task(tmp_path, written, names)
    assert [found.label_meanings[type(n), n] for n in map(label_of, written)] == expected


@pytest.mark.parametrize(
    ("names", "labels", "expected"),
    [
        (("1", "2"), [1, 2], [0, 1]),
        (("1", "2"), [2.0, 1.0], [1, 0]),
        (("1", "2"), [Decimal("2.0"), Decimal("1.0")], [1, 0]),
        (("True", "False"), [True, False], [0, 1]),
        (("no", "yes"), [True, False], [1, 0]),
    ],
)
def test_labels_of_a_parquet_file_mean_what_those_of_a_csv_do(
    tmp_path: Path, names: tuple[str, ...], labels: list[Any], expected: list[int]
) -> None:
    pq.write_table(pa.table({"text": ["a", "b"], "label": labels}), tmp_path / "a.parquet")
    paths = {f"path_{split}": str(tmp_path / "a.parquet") for split in ("train", "test")}
    loaded = TASKS.parse({"name": "file", "class_names": names, **paths})
    assert loaded.load("train", Locations(None, tmp_path)).labels.tolist() == expected


def test_the_number_of_a_class_is_no_label_if_another_is_called_by_it(tmp_path: Path) -> None:
    said = raised_by(
        lambda: task(tmp_path, ["0", "1"], ("1", "2")).load("train", Locations(None, tmp_path))
    )
    assert "label '0' is not one of: 0 1, 1 2" in said


def test_only_tasks_whose_labels_changed_their_meaning_are_marked(tmp_path: Path) -> None:
    for names in (("1", "2"), ("1", "0"), ("True", "False")):
        assert task(tmp_path, ["0"], names).identity()["labels"] == 2
    for names in (("0", "1"), ("False", "True"), ("no", "yes"), ("13", "38")):
        assert "labels" not in task(tmp_path, ["0"], names).identity()


def test_a_class_that_is_called_by_a_number_is_meant_by_its_name(tmp_path: Path) -> None:
    loaded = task(tmp_path, ["1", "0"], ("1", "0")).load("train", Locations(None, tmp_path))
    assert np.array_equal(loaded.labels, [0, 1])


# --- WebDataset


def tar_labels(file: Path, *, by_name: bool = False) -> list[Any]:
    """Return the labels of a tar."""
    batches = open_images(file, "corpus", "label", by_name=by_name).batches()
    return [label for batch in batches for label in batch["label"].to_pylist()]


def test_class_names_of_a_tar_count_in_their_order_as_folders_do(tmp_path: Path) -> None:
    members = [
        (f"{n}.{kind}", content)
        for n, name in enumerate((b"dog", b"ant\n", b"dog"))
        for kind, content in (("png", PNG), ("cls", name))
    ]
    file = tar_of(tmp_path / "a.tar", members)
    assert tar_labels(file) == [1, 0, 1]
    assert tar_labels(file, by_name=True) == ["dog", "ant", "dog"]
    mixed = tar_of(tmp_path / "b.tar", [*members, ("9.png", PNG), ("9.cls", b"1")])
    assert "some labels are numbers and some are names" in raised_by(lambda: tar_labels(mixed))


def test_labels_of_a_json_member_may_be_names_or_written_numbers(tmp_path: Path) -> None:
    for label, expected in (("dog", 0), ("3", 3), (3.0, 3), (True, 1)):
        note = json.dumps({"label": label}).encode()
        assert tar_labels(tar_of(tmp_path / "a.TAR", [("a.png", PNG), ("a.json", note)])) == [
            expected
        ]


def test_the_last_part_of_a_long_ending_says_what_a_member_is(tmp_path: Path) -> None:
    note = [("a.cls", b"2"), ("a.mask.png", b"mask"), ("a.meta.json", b"{}")]
    for name in ("a.image.jpg", "a.jpg", "a.image.JPG"):
        file = tar_of(tmp_path / "a.tar", [(name, PNG), *note])
        (batch,) = open_images(file, "corpus", "label").batches()
        assert batch.to_pylist() == [{"image": PNG, "label": 2}]
    alone = tar_of(tmp_path / "b.tar", [("a.left.jpg", PNG), ("a.label.cls", b"2")])
    assert tar_labels(alone) == [2]
    two = tar_of(tmp_path / "c.tar", [("a.left.jpg", PNG), ("a.right.jpg", PNG), note[0]])
    assert "several images ('left.jpg', 'right.jpg')" in raised_by(lambda: tar_labels(two))


def test_own_parquet_and_tar_may_have_endings_in_capitals(tmp_path: Path) -> None:
    samples = labelled_samples(4)
    paths = (as_parquet(tmp_path / "a.PARQUET", samples), as_tar(tmp_path / "a.TAR", samples))
    for source in paths:
        assert tar_labels(source) == [sample.label for sample in samples]
