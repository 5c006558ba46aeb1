"""Small files that ask for much: each is refused by what it would come to, before that is built."""

import gzip
import io
import json
import resource
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_samples import labelled_samples
from samples import raised_by

from recipe_ray.base.errors import DataError
from recipe_ray.base.limits import OF_DATA, environment
from recipe_ray.data.image_sources import open_images
from recipe_ray.data.sources import column_texts, open_path

LONG = "x" * 64_000_000
PNG = labelled_samples(1)[0].data
DOCS = Path(__file__).parent.parent / "docs" / "data.md"


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Let this process have 1.5 GB more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 1_500_000_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def repeated(value: Any, times: int = 1000) -> pa.Array:
    """Return an array that holds a value once and repeats it."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([value]))


def parquet(file: Path, **columns: Any) -> None:
    """Write a Parquet file, compressed as well as can be."""
    pq.write_table(pa.table(columns), file, compression="zstd", dictionary_pagesize_limit=2**30)


def arrow(file: Path, column: pa.Array) -> None:
    """Write an Arrow stream of one column `text`."""
    table = pa.table({"text": column})
    with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)


def views() -> pa.Array:
    """Return 1,000 views of one long text."""
    one = pa.array([LONG], pa.string_view()).buffers()
    entries = pa.py_buffer(one[1].to_pybytes() * 1000)
    return pa.Array.from_buffers(pa.string_view(), 1000, [None, entries, *one[2:]])


def other_keys(file: Path, nested: bool = False) -> None:
    """Write JSON lines in which every row has other keys."""
    with file.open("w") as out:
        for row in range(1000):
            keys = {f"{row}-{number}": 1 for number in range(1000)}
            out.write(json.dumps({"text": "a", "o": keys} if nested else {"text": "a", **keys}))
            out.write("\n")


def gz(file: Path, piece: bytes, times: int = 2000) -> None:
    """Write a gzip file of many megabytes of the same."""
    with gzip.open(file, "wb", compresslevel=1) as out:
        for _ in range(times):
            out.write(piece)


BOMBS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "dictionary.parquet": (lambda f: parquet(f, text=repeated(LONG)), "MAX_UNPACKED"),
    "beside.parquet": (
        lambda f: parquet(f, text=["a"] * 1000, junk=repeated(LONG)),
        "in column 'junk'",
    ),
    "struct.parquet": (
        lambda f: parquet(f, text=pa.StructArray.from_arrays([repeated(LONG)], ["bytes"])),
        "MAX_UNPACKED",
    ),
    "list.parquet": (
        lambda f: parquet(f, text=pa.ListArray.from_arrays([0, 1000], repeated(LONG))),
        "MAX_UNPACKED",
    ),
    "rows.parquet": (
        lambda f: parquet(f, text=repeated("a text of some words", 60_000_000)),
        "MAX_UNPACKED",
    ),
    "one.parquet": (lambda f: parquet(f, text=[LONG]), "row 1 is a text of 64,000,000"),
    "columns.parquet": (
        lambda f: parquet(f, **{f"c{n}": [1] for n in range(10_001)}),
        "the table: 10,001 columns",
    ),
    "dictionary.arrow": (lambda f: arrow(f, repeated(LONG)), "1000 rows come to 64,000,000,000"),
    "views.arrow": (lambda f: arrow(f, views()), "1000 rows come to 64,000,000,000"),
    "run.arrow": (
        lambda f: arrow(
            f, pa.RunEndEncodedArray.from_arrays(pa.array([2**31 - 1], pa.int64()), pa.array(["a"]))
        ),
        "save it as plain values",
    ),
    "keys.jsonl": (other_keys, "the table by row 10: 10,001 columns"),
    "keys.json": (other_keys, "the table by row 10: 10,001 columns"),
    "columns.csv": (
        lambda f: f.write_text(",".join(f"c{n}" for n in range(1_000_000)) + "\n"),
        "the header: 1,000,000 columns",
    ),
    "commas.csv": (lambda f: f.write_text("text,label\n" + "," * 9_000_000), "row 1 has 8,000,000"),
    "lines.csv": (
        lambda f: f.write_text("text,label\n" + '"\n",' * 3_000_000),
        "row 1 has 8,000,000",
    ),
    "lines.csv.gz": (lambda f: gz(f, b"\n" * 2**20), "unpacks to more than 1,073,741,824"),
    "line.txt.gz": (lambda f: gz(f, b"x" * 2**20), "unpacks to more than 1,073,741,824"),
    "list.json": (lambda f: f.write_text('[{"text": "' + "x" * 9_000_000), "has over 8,000,000"),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_unpacks_to_much_is_refused(name: str, tmp_path: Path) -> None:
    write, said = BOMBS[name]
    write(tmp_path / name)

    def read() -> None:
        source = open_path(tmp_path / name, "corpus")
        source.identity()
        for _ in column_texts(source, "text", "corpus"):
            pass

    found = raised_by(read)
    assert said in found
    assert "RECIPE_RAY_MAX_" in found or "plain values" in found
    assert len(found) < 600


@pytest.mark.timeout(60)
def test_an_image_that_a_dictionary_repeats_is_counted_as_often(tmp_path: Path) -> None:
    image = repeated(PNG + bytes(60_000_000))
    parquet(tmp_path / "a.parquet", image=image, label=[0] * 1000)
    said = raised_by(lambda: list(open_images(tmp_path / "a.parquet", "task", "label").batches()))
    assert "in column 'image'" in said


def test_names_within_a_json_object_are_no_columns(tmp_path: Path) -> None:
    other_keys(tmp_path / "a.jsonl", nested=True)
    source = open_path(tmp_path / "a.jsonl", "corpus")
    assert list(column_texts(source, "text", "corpus")) == ["a"] * 1000
    said = raised_by(lambda: list(column_texts(source, "o", "corpus")))
    assert "column 'o' holds bytes values, not text" in said


def test_a_value_that_repeats_within_reason_is_no_bomb(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet(file, text=repeated("a text " * 1000, 5000), label=repeated("yes", 5000))
    batches = list(open_path(file, "corpus").batches())
    assert sum(batch.num_rows for batch in batches) == 5000
    assert {batch.schema.field("text").type for batch in batches} == {pa.string()}


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """Return a tar header that says what it likes about its size."""
    block = name.ljust(100, b"\0") + b"0000644\0" * 3 + size.ljust(12, b"\0")[:12]
    block += b"00000000000\0" + b" " * 8 + kind
    block = block.ljust(257, b"\0") + b"ustar\00000"
    block = block.ljust(512, b"\0")
    total = sum(block)
    return block[:148] + f"{total:06o}\0 ".encode() + block[156:]


HUGE = b"\x80" + struct.pack(">3xQ", 2**62)
NEGATIVE = b"\xff" * 11 + b"\x00"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [HUGE, NEGATIVE, b"77777777777"])
@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"S"])
def test_a_tar_header_that_lies_about_its_size_is_refused(
    tmp_path: Path, size: bytes, kind: bytes
) -> None:
    (tmp_path / "a.tar").write_bytes(header(b"a.png", size, kind) + bytes(2048))
    source = open_images(tmp_path / "a.tar", "corpus", "label")
    with pytest.raises(DataError):
        list(source.batches())


def test_a_sample_of_very_many_members_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(200):
            info = tarfile.TarInfo(f"a.{number}.jpg")
            info.size = len(PNG)
            tar.addfile(info, io.BytesIO(PNG))
    source = open_images(tmp_path / "a.tar", "corpus", "label")
    assert "over 100 members" in raised_by(lambda: list(source.batches()))


@pytest.mark.parametrize("limit", OF_DATA, ids=lambda limit: limit.name)
def test_every_limit_can_be_set_and_is_in_the_docs(
    limit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"`{limit.variable}`" in DOCS.read_text()
    assert f"{limit.default:,}" in DOCS.read_text()
    monkeypatch.setenv(limit.variable, "12")
    assert limit.value == 12
    assert environment() == {limit.variable: "12"}
    for wrong in ("0", "-1", "many", "1.5"):
        monkeypatch.setenv(limit.variable, wrong)
        assert f"{limit.variable}={wrong}: expected" in raised_by(lambda: limit.value)


def test_a_raised_limit_lets_the_data_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 2_000_000}))
    source = open_path(tmp_path / "a.jsonl", "corpus")
    assert "RECIPE_RAY_MAX_TEXT" in raised_by(lambda: list(column_texts(source, "text", "c")))
    monkeypatch.setenv("RECIPE_RAY_MAX_TEXT", "3000000")
    assert len(next(column_texts(source, "text", "c"))) == 2_000_000
