"""Fixtures shared by the tests: real data where they are at hand, and one small Ray a session."""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_client import CLOSED, Client
from pair import Pair
from samples import SENTENCES, tiny_folder

from recipe_ray.data.sources import Locations
from recipe_ray.learn import precision


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep a file's tests in one process; those that share Ray or `pair` in one, begun first."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("shared" if _shares(item) else item.path.name))
    items.sort(key=_shares, reverse=True)


def _shares(item: pytest.Item) -> bool:
    return not {"ray_session", "pair"}.isdisjoint(getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def locations(tmp_path_factory: pytest.TempPathFactory) -> Locations:
    """Return the folder of real texts that RECIPE_RAY_DATA names; skip without."""
    folder = Path(os.environ.get("RECIPE_RAY_DATA") or "no data folder")
    if not folder.is_dir():
        pytest.skip("RECIPE_RAY_DATA names no folder of real texts")
    return Locations(folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def places(tmp_path: Path) -> Locations:
    """Return no data folder, and an empty cache."""
    return Locations(None, tmp_path / "cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the tiny model's folder, to be damaged."""
    return Path(shutil.copytree(tiny_folder(), tmp_path / "model"))


@pytest.fixture(scope="module")
def s3_options() -> Iterator[str]:
    """Give the URI options of a running S3 server with one bucket."""
    from store_samples import s3_server

    with s3_server() as options:
        yield options


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which the hub's clients keep files."""
    return tmp_path_factory.mktemp("hf_home")


@pytest.fixture(scope="module")
def offline(home: Path) -> Iterator[Client]:
    """Give a process in which no hub answers, with the same folder."""
    process = Client(CLOSED, home)
    yield process
    process.close()


@pytest.fixture(scope="session")
def few_texts(tmp_path_factory: pytest.TempPathFactory) -> Locations:
    """Return a data folder of a few sentences, for tests that nobody needs a real one for."""
    folder = tmp_path_factory.mktemp("few")
    text = pa.array(SENTENCES * 4)
    label = pa.array([number % 3 == 0 for number in range(len(text))]).cast(pa.int32())
    for corpus in ("wikitext", "bookcorpus"):
        pq.write_table(pa.table({"text": text}), folder / f"{corpus}.parquet")
    for split in ("train", "test"):
        pq.write_table(pa.table({"text": text, "label": label}), folder / f"sst2_{split}.parquet")
    return Locations(folder, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """Run a Ray of three CPUs on this machine for all tests that need one."""
    # before Ray is imported; its workers import functions from the tests
    os.environ.update(
        RAY_AUTH_MODE="disabled",
        RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="60",
        PYTHONPATH=str(Path(__file__).parent),
    )
    import ray

    from recipe_ray.distributed.cluster import SETTINGS

    os.environ.update(SETTINGS, OMP_NUM_THREADS="1")
    # a short path: the sockets in it may have 107 characters
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        ray.init(
            "local",
            num_cpus=3,
            include_dashboard=False,
            _temp_dir=folder,
            object_store_memory=128 * 2**20,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Give two processes that train together."""
    processes = Pair(tmp_path_factory.mktemp("pair") / "meeting")
    yield processes
    processes.close()


@pytest.fixture
def bf16_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in bf16 where that is asked for, emulated if need be: small models only."""
    monkeypatch.setattr(precision, "_has_bf16", lambda device: True)
