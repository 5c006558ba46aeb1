"""Looks at a purification while it goes on: what they measure, and going on after a kill."""

from pathlib import Path

import pytest
from tiny_cell import measured
from tiny_search import purify_tiny, tiny_search

from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.search import Settings
from recipe_ray.experiment.search_plan import SearchPlan
from recipe_ray.stages.epoch_evals import PURIFY_S
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.store.store import Store

SETTINGS = Settings(0.5)


class KilledError(Exception):
    """Stands for whatever ends a process between two looks."""


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchPlan, Store, Locations]:
    """Return a search whose candidate has been purified with looks, undisturbed."""
    folder = tmp_path_factory.mktemp("looked")
    plan, places = tiny_search(folder, epochs=3), Locations(None, folder)
    store = Store.open(folder / "store")
    run_inline(plan.undefended.stages.values(), store, places)
    purify_tiny(plan.candidate(SETTINGS), store, places, lambda look: None)
    return plan, store, places


def values(store: Store, look: FinetuneStage) -> list[dict[str, object]]:
    return [row for row in measured(store, look) if row["metric"] != PURIFY_S]


def test_a_look_measures_what_the_stage_of_its_snapshot_would(
    looked: tuple[SearchPlan, Store, Locations], tmp_path: Path
) -> None:
    plan, store, places = looked
    candidate = plan.candidate(SETTINGS)
    whole = Store.open(tmp_path)
    run_inline([*candidate.purify.lineage(), *candidate.looks], whole, places)
    for look in candidate.looks:
        assert values(store, look) == values(whole, look)
    assert len({str(values(store, look)) for look in candidate.looks}) == 3


def test_a_killed_candidate_goes_on_from_its_last_look(
    looked: tuple[SearchPlan, Store, Locations], tmp_path: Path
) -> None:
    plan, store, places = looked
    candidate, killed = plan.candidate(SETTINGS), Store.open(tmp_path)
    run_inline(plan.undefended.stages.values(), killed, places)

    def kill(look: FinetuneStage) -> None:
        if look.snapshot == 2:
            raise KilledError

    with pytest.raises(KilledError):
        purify_tiny(candidate, killed, places, kill)
    assert [killed.has(look.artifact) for look in candidate.looks] == [True, True, False]
    again: list[FinetuneStage] = []
    purify_tiny(candidate, killed, places, again.append, start=2)
    assert again == [candidate.looks[2]]
    assert values(killed, candidate.looks[2]) == values(store, candidate.looks[2])
