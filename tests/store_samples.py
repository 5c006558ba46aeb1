"""What the tests of the store share: an artifact, racing writers, an S3 server."""

import json
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from moto.server import ThreadedMotoServer

from recipe_ray.store.claims import DRIVERS
from recipe_ray.store.rows import Measurement, measurement_table
from recipe_ray.store.store import ArtifactId, Store

SPAWN = multiprocessing.get_context("spawn")
POR = ArtifactId("backdoor", "bert-por", "a1b2c3")


@contextmanager
def s3_server() -> Iterator[str]:
    """Run an S3 server that has one bucket; give the options of its URIs."""
    dummy = {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in dummy.items():
            patch.setenv(name, value)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        options = f"endpoint_override={host}:{port}&scheme=http&region=us-east-1"
        filesystem, _ = pafs.FileSystem.from_uri(f"s3://?{options}&allow_bucket_creation=true")
        filesystem.create_dir("bucket")
        yield options
        server.stop()


def filled(folder: Path, text: str = "weights", size: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_text(text + "." * size)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("the\ncat\n")
    return folder


def so_far(step: int) -> dict[str, Any]:
    """Return a note of a stage that is at a step of ten."""
    return {"phase": "purify", "step": step, "num_steps": 10}


def driven(experiment: str, **changes: Any) -> dict[str, Any]:
    """Return the note of a driver that has nothing to do yet."""
    states = dict.fromkeys(("waiting", "running", "done", "failed"), 0)
    who = {"experiment": experiment, "host": "node-7", "pid": 4242, "started": "2026-01-02"}
    return {**who, "counted": "stages", "states": states, "running": [], "left_s": None, **changes}


def leave_lease(store: Store, driver: str, note: dict[str, Any]) -> Path:
    """Write a driver's lease, as if it had just been renewed; return the file."""
    file = Path(store.uri) / DRIVERS / f"{driver}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({**note, "number": 1, "time": datetime.now(UTC).isoformat()}))
    return file


def some_rows(value: float = 0.75) -> pa.Table:
    return measurement_table([Measurement("acc", value)], {"stage": POR.key, "kind": "backdoor"})


def committed(store: Store, artifact: ArtifactId = POR) -> ArtifactId:
    assert store.commit(artifact, filled(store.local_scratch()), {"parent": "p1"}, some_rows())
    return artifact


def _race(uri: str, number: int, start: Barrier, outcomes: Any) -> None:
    store = Store.open(uri)
    folder = filled(store.local_scratch(), f"from {number}")
    start.wait()
    outcomes.put((number, store.commit(POR, folder, {"number": number}, some_rows(number))))


def raced(uri: str, count: int) -> list[int]:
    """Let `count` processes commit the same key at once; return which of them landed."""
    start, outcomes = SPAWN.Barrier(count), SPAWN.Queue()
    racers = [
        SPAWN.Process(target=_race, args=(uri, number, start, outcomes)) for number in range(count)
    ]
    for racer in racers:
        racer.start()
    landed = [number for number, won in (outcomes.get(timeout=60) for _ in racers) if won]
    for racer in racers:
        racer.join(timeout=60)
        assert racer.exitcode == 0
    return landed


def commit_once(uri: str, folder: str) -> None:
    Store.open(uri).commit(POR, Path(folder), {"parent": "p1"}, some_rows())
