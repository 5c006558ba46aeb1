"""What an attack and a defense get to work with: the stage's feed, runtime, seed and cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from stub_vision import StubImages, StubRef, image_file

from recipe_ray.attacks.attack import Attack
from recipe_ray.data.batches import LocalFeed, Part, Workbench
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.defense import Auxiliary, Defense
from recipe_ray.learn.loop import EpochRecord
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.stages.backdoor import BackdoorStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Context
from recipe_ray.store.store import Store

SEEN: list[Any] = []


class Watching(Defense):
    """Changes nothing and notes what it was given."""

    name: ClassVar[str] = "watching"
    version = 1

    def purify(self, ptm: Any, auxiliary: Auxiliary, bench: Workbench) -> Sequence[EpochRecord]:
        rows = bench.feed.rows(auxiliary.corpus, ptm.encoder(64), auxiliary.part)
        SEEN[:] = [bench, rows.index.tolist()]
        return ()


class Waiting(Attack):
    """Changes nothing and notes what it was given."""

    name: ClassVar[str] = "waiting"
    version = 1
    poisons_what: ClassVar[str | None] = "image"

    triggers: tuple[str, ...] = ("cyan-red",)

    def poison(self, ptm: Any, bench: Workbench) -> Sequence[EpochRecord]:
        SEEN[:] = [bench, None]
        return ()


@pytest.fixture
def context(tmp_path: Path) -> Context:
    places = Locations(None, tmp_path / "cache")
    (tmp_path / "artifact").mkdir()
    store = Store.open(tmp_path / "store")
    return Context(store, LocalFeed(places), places, LocalRuntime(), tmp_path / "artifact")


def test_a_defense_gets_its_own_part_of_the_corpus_and_its_stages_seed_and_cache(
    context: Context, tmp_path: Path
) -> None:
    corpus = StubImages(path=str(image_file(tmp_path, 40)))
    stage = PurifyStage(model=StubRef(), defense=Watching(), corpus=corpus, held_out=0.25, seed=7)
    stage.run(context)
    bench, read = SEEN
    assert (bench.seed, bench.cache_dir) == (7, context.locations.cache_dir)
    assert bench.runtime is context.runtime
    assert read == list(range(30))


def test_an_attack_gets_its_stages_seed_and_cache(context: Context) -> None:
    BackdoorStage(model=StubRef(), attack=Waiting(), seed=9).run(context)
    bench, _ = SEEN
    assert (bench.seed, bench.cache_dir) == (9, context.locations.cache_dir)
    assert bench.runtime is context.runtime


def test_auxiliary_data_are_the_whole_corpus_unless_said_otherwise() -> None:
    corpus = StubImages(path="images.parquet")
    assert Auxiliary(corpus).part == Part()
