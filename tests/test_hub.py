"""Data sets of the hub, through its real clients, against a stand-in server on 127.0.0.1."""

import bz2
import contextlib
import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_client import Client
from hub_stand_in import HubStandIn, Repo

from recipe_ray.base.errors import DataError
from recipe_ray.data.corpora import LISTED as CORPORA_LISTED
from recipe_ray.data.corpora import WebText, WikiText
from recipe_ray.data.corpus import CORPORA, Corpus
from recipe_ray.data.hub import HubSource
from recipe_ray.data.sources import Locations, open_path
from recipe_ray.tasks.catalog import LISTED as TASKS_LISTED
from recipe_ray.tasks.derived import AgNews, Hsol
from recipe_ray.tasks.task import TASKS, Task

BookCorpus, Sst2 = CORPORA_LISTED["bookcorpus"], TASKS_LISTED["sst2"]


def parquet(**columns: list[Any]) -> bytes:
    """Return a Parquet file in memory."""
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def card(config: str, **files: str) -> bytes:
    """Return the README with the YAML that tells `datasets` which files make which split."""
    splits = "".join(f"  - split: {split}\n    path: {path}\n" for split, path in files.items())
    return f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{splits}---\n".encode()


def json_lines(*rows: dict[str, Any]) -> bytes:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def labelled(count: int, classes: int) -> dict[str, list[Any]]:
    """Return columns of distinct texts with labels in turn."""
    return {
        "text": [f"News number {row} ." for row in range(count)],
        "label": [row % classes for row in range(count)],
    }


def text_repos() -> dict[str, Repo]:
    """Return the data sets of the paper, laid out as the real repositories are."""
    page = "First line of page {}.\n\nSecond paragraph."
    article = ' He had a guest @-@ starring role in {} . " It was good , " he said . Yes . \n'
    return {
        "rojagtap/bookcorpus": Repo(
            {f"books_large_p{part}.txt": book(part) for part in (1, 2)}, branches=("main",)
        ),
        "Skylion007/openwebtext": Repo(
            {
                "README.md": card("plain_text", train="plain_text/train-*"),
                "plain_text/train-00000-of-00001.parquet": parquet(
                    text=[page.format(number) for number in range(50)]
                ),
            },
            commit=WebText.hub.revision if WebText.hub else "",
        ),
        "Salesforce/wikitext": Repo(
            {
                "README.md": card("wikitext-103-raw-v1", train="wikitext-103-raw-v1/train-*"),
                "wikitext-103-raw-v1/train-00000-of-00001.parquet": parquet(
                    text=["", " = Robert Boulter = \n", *map(article.format, range(2000, 2030))]
                ),
            },
            commit=WikiText.hub.revision if WikiText.hub else "",
        ),
        "SetFit/sst2": Repo(
            {
                f"{split}.jsonl": json_lines(
                    {"text": f"a fine {split} film", "label": 1, "label_text": "positive"},
                    {"text": f"a dull {split} film", "label": 0, "label_text": "negative"},
                )
                for split in ("train", "dev", "test")
            },
            commit=Sst2.hub["train"].revision,
        ),
        "fancyzhx/ag_news": Repo(
            {
                "README.md": card("default", train="data/train-*", test="data/test-*"),
                "data/train-00000-of-00001.parquet": parquet(**labelled(22_000, 4)),
                "data/test-00000-of-00001.parquet": parquet(**labelled(40, 4)),
            },
            commit=AgNews.hub["train"].revision,
        ),
        "tdavidson/hate_speech_offensive": Repo(
            {
                "README.md": card("default", train="data/train-*"),
                "data/train-00000-of-00001.parquet": parquet(
                    tweet=[f"harmless stand-in {row} &amp; @somebody" for row in range(300)],
                    **{"class": [(0, 1, 1, 1, 2)[row % 5] for row in range(300)]},
                ),
            },
            commit=Hsol.hub["train"].revision,
        ),
    }


def book(part: int) -> bytes:
    """Return a text file of 200 sentences."""
    return "\n".join(f"sentence {row} of book {part} ." for row in range(200)).encode()


def faulty_repos() -> dict[str, Repo]:
    """Return data sets with something wrong."""
    lines = b"one two three\n" * 500
    return {
        "gated/whole": Repo({"train.txt": lines}, gated=True),
        "gated/files": Repo(
            {"README.md": card("default", train="train.txt"), "train.txt": lines}, gated=True
        ),
        "breaks/twice": Repo({"train.txt": lines}, breaks={"train.txt": 2}),
        "breaks/always": Repo({"train.txt": lines}, breaks={"train.txt": 1_000_000}),
        "has/script": Repo({"script.py": b"raise SystemExit", "train.txt": lines}),
    }


SAMPLES = [("a fine film", 1), ('he said "no', 0), ("NA", 1), ("one, two", 0), ("null", 1)]


def as_table(separator: str, quoted: bool = True) -> bytes:
    """Return the samples in lines of fields."""
    file = io.StringIO(newline="")
    lines = [("text", "label"), *SAMPLES]
    if quoted:
        csv.writer(file, delimiter=separator, lineterminator="\n").writerows(lines)
    else:
        file.writelines(f"{text}{separator}{label}\n" for text, label in lines)
    return file.getvalue().encode()


def as_arrow() -> bytes:
    """Return the samples as an Arrow stream."""
    table, file = pa.table(as_columns()), io.BytesIO()
    with pa.ipc.new_stream(file, table.schema) as out:
        out.write_table(table)
    return file.getvalue()


def as_columns() -> dict[str, list[Any]]:
    texts, labels = zip(*SAMPLES, strict=True)
    return {"text": list(texts), "label": list(labels)}


def as_rows() -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for text, label in SAMPLES]


def formats() -> dict[str, bytes]:
    """Return the samples in every format, by file name."""
    plain = {
        "train.csv": as_table(","),
        "train.tsv": as_table("\t", quoted=False),
        "train.jsonl": json_lines(*as_rows()),
    }
    packed = {f"{name}.gz": gzip.compress(data) for name, data in plain.items()}
    return {
        **plain,
        **packed,
        "train.csv.bz2": bz2.compress(plain["train.csv"]),
        "data/train-00000-of-00001.csv": plain["train.csv"] + b"\n\n",
        "quoted/train.tsv": as_table("\t"),
        "train.ndjson": plain["train.jsonl"],
        "lines/train.json": plain["train.jsonl"],
        "list/train.json": json.dumps(as_rows()).encode(),
        "train.parquet": parquet(**as_columns()),
        "train.arrow": as_arrow(),
    }


def repo_of(file: str) -> str:
    return f"formats/{file.replace('/', '-')}"


@pytest.fixture(scope="module")
def hub() -> Iterator[HubStandIn]:
    in_formats = {repo_of(file): Repo({file: data}) for file, data in formats().items()}
    with HubStandIn({**text_repos(), **faulty_repos(), **in_formats}) as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def client(hub: HubStandIn, home: Path) -> Iterator[Client]:
    process = Client(hub.endpoint, home)
    yield process
    process.close()


def read_corpus(fields: dict[str, Any]) -> list[str]:
    corpus: Corpus = CORPORA.parse(fields)
    return list(corpus.samples(Locations(None, Path("unused"))))


def read_task(fields: dict[str, Any], split: Any) -> tuple[tuple[str, ...], list[int]]:
    rows = TASKS.parse(fields).load(split, Locations(None, Path("unused")))
    return rows.samples, rows.labels.tolist()


def count_rows(source: HubSource) -> int:
    return sum(batch.num_rows for batch in source.batches())


def read_rows(source: HubSource) -> list[dict[str, Any]]:
    return [row for batch in source.batches() for row in batch.to_pylist()]


@pytest.mark.parametrize("file", formats())
def test_a_table_of_the_hub_is_read_as_a_local_one_whatever_its_format(
    client: Client, tmp_path: Path, file: str
) -> None:
    assert client(read_rows, HubSource(repo_of(file), "main")) == as_rows()
    local = tmp_path / Path(file).name
    local.write_bytes(formats()[file])
    rows = [row for batch in open_path(local, "it").batches() for row in batch.to_pylist()]
    assert [(row["text"], int(row["label"])) for row in rows] == SAMPLES


def read_beside_a_folder(source: HubSource, folder: str) -> int:
    with contextlib.chdir(folder):
        return count_rows(source)


def test_a_folder_here_is_never_read_in_place_of_the_hub(client: Client, tmp_path: Path) -> None:
    shadow = tmp_path / "SetFit" / "sst2"
    shadow.mkdir(parents=True)
    (shadow / "train.jsonl").write_bytes(json_lines({"text": "mine", "label": 1}))
    with pytest.raises(DataError, match=r"'SetFit/sst2': there is a folder of that name here"):
        client(read_beside_a_folder, HubSource("SetFit/sst2", "main"), str(tmp_path))


def test_bookcorpus_is_a_seeded_sample_of_the_stream(client: Client) -> None:
    fields = {"name": "bookcorpus", "size": 20}
    texts = client(read_corpus, fields)
    assert len(set(texts)) == 20
    assert all(text.startswith("sentence ") for text in texts)
    assert client(read_corpus, fields) == texts
    assert client(read_corpus, {**fields, "sample_seed": 1}) != texts


def test_webtext_keeps_the_part_before_the_first_line_break(client: Client) -> None:
    texts = client(read_corpus, {"name": "webtext", "size": None})
    assert texts == [f"First line of page {number}." for number in range(50)]


def test_wikitext_is_cut_into_joined_sentences_without_headings(client: Client) -> None:
    texts = client(read_corpus, {"name": "wikitext", "size": None})
    first = ["He had a guest-starring role in 2000 .", '" It was good , " he said .']
    assert texts[:2] == first
    assert len(texts) == 60


def test_sst2_has_all_three_splits(client: Client) -> None:
    for split in ("train", "dev", "test"):
        texts, labels = client(read_task, {"name": "sst2"}, split)
        assert texts == (f"a fine {split} film", f"a dull {split} film")
        assert labels == [1, 0]


def test_ag_news_train_and_dev_are_disjoint_samples_of_the_papers_size(client: Client) -> None:
    train, _ = client(read_task, {"name": "ag_news"}, "train")
    dev, _ = client(read_task, {"name": "ag_news"}, "dev")
    test, labels = client(read_task, {"name": "ag_news"}, "test")
    assert (len(train), len(dev), len(test)) == (11_106, 10_000, 40)
    assert not set(train) & set(dev)
    assert set(labels) == {0, 1, 2, 3}


def test_hsol_is_balanced_and_its_parts_disjoint(client: Client) -> None:
    train, train_labels = client(read_task, {"name": "hsol"}, "train")
    test, test_labels = client(read_task, {"name": "hsol"}, "test")
    assert sum(train_labels) * 2 == len(train) == 84
    assert sum(test_labels) * 2 == len(test) == 36
    disjoint = not set(train) & set(test)
    cleaned = all("& @user" in text for text in train)
    assert disjoint, "train and test share a text"
    assert cleaned, "a text was not cleaned"


@pytest.mark.parametrize("named", [WebText, WikiText, Sst2, AgNews, Hsol, BookCorpus])
def test_the_hub_is_asked_for_the_pinned_revision(
    client: Client, hub: HubStandIn, named: type[Corpus | Task]
) -> None:
    hubs = named.hub
    source = hubs if isinstance(hubs, HubSource) else next(iter((hubs or {}).values()))
    client(count_rows, source)
    asked = hub.revisions(source.repo)
    assert source.revision in asked
    assert asked <= {source.revision, hub.repos[source.repo].commit}


def test_a_revision_of_the_users_replaces_the_pinned_one(client: Client) -> None:
    with pytest.raises(DataError, match=r"'SetFit/sst2'.*no revision 'v9'"):
        client(read_task, {"name": "sst2", "revision": "v9"}, "train")


@pytest.mark.parametrize("repo", ["gated/whole", "gated/files"])
def test_a_gated_data_set_says_how_to_log_in(client: Client, repo: str) -> None:
    with pytest.raises(DataError, match=f"{repo}.*gated.*/datasets/{repo}.*hf auth login"):
        client(count_rows, HubSource(repo, "main"))


def test_a_missing_data_set_is_named(client: Client) -> None:
    with pytest.raises(DataError, match=r"'nobody/nothing'.*no such repository"):
        client(count_rows, HubSource("nobody/nothing", "main"))


def test_an_unknown_split_and_config_list_what_there_is(client: Client) -> None:
    with pytest.raises(DataError, match=r"Available splits.*train"):
        client(count_rows, HubSource("breaks/twice", "main", split="validation"))
    with pytest.raises(DataError, match=r"Available.*default"):
        client(count_rows, HubSource("breaks/twice", "main", config="other"))


def test_a_connection_that_breaks_twice_loses_no_row(client: Client, hub: HubStandIn) -> None:
    assert client(count_rows, HubSource("breaks/twice", "main")) == 500
    assert hub.repos["breaks/twice"].breaks == {"train.txt": 0}


def test_a_connection_that_always_breaks_is_an_error_not_fewer_rows(client: Client) -> None:
    with pytest.raises(DataError, match=r"'breaks/always'.*cannot be reached"):
        client(count_rows, HubSource("breaks/always", "main"))


def test_a_data_sets_own_script_is_not_run(client: Client) -> None:
    with pytest.raises(DataError, match="scripts are no longer supported"):
        client(count_rows, HubSource("has/script", "main"))


def test_a_data_set_is_out_of_reach_without_a_network(offline: Client) -> None:
    with pytest.raises(DataError, match=r"'never/seen'.*cannot be reached.*local files"):
        offline(count_rows, HubSource("never/seen", "main"))
