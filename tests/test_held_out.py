"""Held-out samples come through the feed: no worker reads a corpus from its source again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import SENTENCES, tiny_folder, tiny_ptm

from recipe_ray.base.errors import DataError
from recipe_ray.data.batches import LocalFeed, Part
from recipe_ray.data.corpora import LISTED, OwnText
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.data import Shards, shard
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.spec import Launch
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Stage
from recipe_ray.store.store import Store

NOWHERE = Locations(None, Path("nowhere"))  # a corpus read from here is an error
FIT = {"steps": 3, "batch_size": 8, "max_length": 16, "precision": "fp32", "dropout": False}
COMMON: Any = {
    "model": {"name": "bert", "source": str(tiny_folder())},
    "corpus": LISTED["bookcorpus"](size=90),
    "held_out": 0.3,
    "seed": 0,
}
STAGES = {
    "purify": PurifyStage(**COMMON, defense={"name": "recipe", "fit": FIT}),
    "pretrain": PretrainStage(**COMMON, fit=FIT),
}


def without_source(stage: Stage, work: Any, readings: Any) -> None:
    """Run a stage in a worker to which the data folder is not there."""
    from recipe_ray.distributed.data import RayFeed
    from recipe_ray.distributed.train import observed_worker
    from recipe_ray.stages.run import attempt

    with observed_worker(stage, work) as seen:
        attempt(stage, work.store, RayFeed(readings, work.launch.stream), NOWHERE, seen)


def values(store: Store, stage: Stage) -> dict[str, float]:
    rows = store.rows(stage.artifact).to_pylist()
    return {row["metric"]: row["value"] for row in rows}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("kind", "stream"),
    [
        pytest.param("purify", False, marks=pytest.mark.cluster),
        ("purify", True),
        pytest.param("pretrain", False, marks=pytest.mark.cluster),
    ],
)
def test_workers_measure_on_what_one_process_does_without_reading_the_source(
    kind: str, stream: bool, few_texts: Locations, tmp_path: Path
) -> None:
    from recipe_ray.distributed.train import SweepContext, on_workers

    stage = STAGES[kind]
    local, shared = (Store.open(tmp_path / name) for name in ("local", "shared"))
    run_inline([stage], local, few_texts)
    launch = Launch(workers={"pretrain": 2, "purify": 2}, stream=stream, max_failures=0)
    on_workers(without_source, stage, SweepContext({}, shared, few_texts, launch))
    assert shared.manifest(stage.artifact)["world_size"] == 2
    one, two = values(local, stage), values(shared, stage)
    assert one.keys() == two.keys()
    # a stream trains in another order, so only what is measured before it is the same
    same = {"held_out_loss.before", "held_out_unigram"} & one.keys() if stream else one.keys()
    assert {name: two[name] for name in same} == pytest.approx(
        {name: one[name] for name in same}, rel=1e-4, abs=1e-6
    )


def sharded(folder: Path, num_texts: int, a_shard: int) -> Shards:
    source = folder / "texts.txt"
    source.write_text("".join(f"{number:04d}\n" for number in range(num_texts)))
    corpus = OwnText(path=str(source), size=None)
    return shard(corpus, Locations(None, folder), Store.open(folder / "store"), a_shard)


@pytest.mark.parametrize("part", [Part(0.9, 1.0), Part(0.25, 0.5), Part(0.0, 0.9, 7), Part()])
def test_the_pieces_of_all_workers_are_the_part(part: Part, tmp_path: Path) -> None:
    shards = sharded(tmp_path, 3000, 1200)
    pieces = [piece for rank in range(3) for piece in shards.pieces(part, rank, 3)]
    numbers = np.concatenate([piece["index"] for piece in pieces])
    assert sorted(numbers) == list(shards.rows_of(part))
    assert all(
        int(text) == number
        for piece in pieces
        for text, number in zip(piece["text"], piece["index"], strict=True)
    )


def test_only_the_shards_of_a_part_are_read(tmp_path: Path) -> None:
    shards = sharded(tmp_path, 3000, 1000)
    for path in shards.paths[:2]:
        (tmp_path / "store" / path).unlink()
    assert sum(len(piece["index"]) for piece in shards.pieces(Part(0.9, 1.0), 0, 1)) == 300


def test_a_part_may_be_the_first_samples_of_a_range() -> None:
    assert Part(0.1, 0.5, 7).of(100) == slice(10, 17)
    assert Part(0.1, 0.5, 70).of(100) == slice(10, 50)
    with pytest.raises(DataError, match="none of its 100 texts lies"):
        Part(0.5, 0.5).check(100, LISTED["bookcorpus"]())


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each reading of a corpus in this process adds its label."""
    found: list[str] = []
    samples = OwnText.samples

    def counted(corpus: OwnText, locations: Locations) -> Any:
        found.append(corpus.label())
        return samples(corpus, locations)

    monkeypatch.setattr(OwnText, "samples", counted)
    return found


@pytest.mark.parametrize("kind", STAGES)
def test_one_process_reads_a_corpus_once_a_stage(
    kind: str, reads: list[str], tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(SENTENCES * 2))
    stage = STAGES[kind].revised(corpus=OwnText(path=str(texts)))
    run_inline([stage], Store.open(tmp_path / "store"), Locations(None, tmp_path))
    assert len(reads) == 1


def test_a_feed_asked_for_another_corpus_reads_that(reads: list[str], tmp_path: Path) -> None:
    feed, encode = LocalFeed(Locations(None, tmp_path)), tiny_ptm().encoder(16)
    found = []
    for count in (3, 5):
        texts = tmp_path / f"{count}.txt"
        texts.write_text("\n".join(SENTENCES[:count]))
        found.append(len(feed.rows(OwnText(path=str(texts)), encode, Part())))
    assert found == [3, 5]
    assert len(reads) == 2
