"""What the guard measures: it sees harm in features, and none where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import corpus_file, tiny_folder

from recipe_ray.data.batches import LocalFeed
from recipe_ray.data.census import WordLoss
from recipe_ray.data.sources import Locations
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.stages.guard import (
    LEAST_SAMPLES,
    NEIGHBOURS,
    TITLES,
    effective_rank,
    guarded,
    head_margins,
    neighbours_kept,
    predictability,
)
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Context
from recipe_ray.store.store import Store

RANDOM = np.random.default_rng(0)
OLD = RANDOM.normal(size=(200, 24)) @ RANDOM.normal(size=(24, 24))


def measured(new: Any) -> dict[str, float]:
    return {one.metric: one.value for one in guarded(OLD, new)}


def test_the_same_features_keep_everything() -> None:
    found = measured(OLD)
    assert found["guard.neighbours_kept"] == 1
    assert found["guard.predictability"] > 0.999
    assert found["guard.effective_rank.before"] == found["guard.effective_rank.after"]


def test_a_turned_and_scaled_space_is_no_harm() -> None:
    turn, _ = np.linalg.qr(RANDOM.normal(size=(24, 24)))
    found = measured(3 * OLD @ turn)
    assert found["guard.neighbours_kept"] > 0.999
    assert found["guard.predictability"] > 0.999
    assert found["guard.effective_rank.after"] == pytest.approx(effective_rank(OLD))


def test_features_that_have_nothing_to_do_with_the_old_are_harm() -> None:
    found = measured(RANDOM.normal(size=(200, 24)))
    assert found["guard.neighbours_kept"] == pytest.approx(NEIGHBOURS / 199, abs=0.02)
    assert found["guard.predictability"] < 0.05


def test_as_many_columns_as_samples_predict_nothing_by_heart() -> None:
    # in the sample itself such a regression is perfect
    assert predictability(OLD, RANDOM.normal(size=(200, 400))) < 0.05


def test_more_noise_keeps_less() -> None:
    noise = OLD.std() * RANDOM.normal(size=OLD.shape)
    found = [measured(OLD + share * noise) for share in (0.1, 0.5, 2.0)]
    for name in ("guard.neighbours_kept", "guard.predictability"):
        values = [one[name] for one in found]
        assert values == sorted(values, reverse=True)
    assert neighbours_kept(OLD, OLD + 0.1 * noise) > 0.5


def test_the_rank_says_over_how_many_directions_features_spread() -> None:
    even, _ = np.linalg.qr(RANDOM.normal(size=(100, 9)) - 0.0)
    few = even[:, :5] - even[:, :5].mean(0)
    assert effective_rank(few) == pytest.approx(5, abs=0.1)
    assert measured(np.outer(OLD[:, 0], OLD[0]))["guard.effective_rank.after"] < 1.01


def test_few_samples_say_nothing() -> None:
    assert guarded(OLD[: LEAST_SAMPLES - 1], OLD[: LEAST_SAMPLES - 1]) == []


def test_a_head_that_gives_what_word_frequencies_give_has_no_margin() -> None:
    before, after = head_margins(WordLoss(7.4, 2.9, 2400), 7.4, 6.9)
    assert (before.value, after.value) == (0.0, pytest.approx(0.5))


def test_a_stage_measures_it_on_what_is_held_out(tmp_path: Path) -> None:
    stage = PurifyStage(
        model={"name": "bert", "source": str(tiny_folder())},
        corpus={"name": "file", "path": str(corpus_file(tmp_path, times=10)), "size": None},
        defense={"name": "recipe", "fit": {"steps": 2, "batch_size": 8, "max_length": 16}},
        held_out=0.4,
        seed=0,
    )
    places = Locations(None, tmp_path)
    folder = tmp_path / "made"
    folder.mkdir()
    rows = stage.run(
        Context(Store.open(tmp_path / "store"), LocalFeed(places), places, LocalRuntime(), folder)
    )
    found = {row.metric for row in rows}
    for name in TITLES:
        assert name in found or {f"{name}.before", f"{name}.after"} <= found
