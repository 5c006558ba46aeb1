"""How far triggers move a PTM's representations, and searches that rank candidates by it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from samples import SENTENCES, packed, task_fields, tiny_folder, tiny_ptm
from tiny_cell import by_metric, measured, rows_of
from tiny_search import purify_tiny, tiny_search

from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.search import WORST, Settings, score_of_displacement
from recipe_ray.experiment.search_plan import look_at
from recipe_ray.stages.displacement import FARTHEST, LOSS, MOVED, DisplacementStage
from recipe_ray.stages.epoch_evals import PURIFY_S
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.store.store import Store
from recipe_ray.triggers.word import WordTrigger

TRIGGERS = ("cf", "mn")


def test_it_is_the_shift_of_the_mean_in_units_of_the_clean_spread(tmp_path: Path) -> None:
    about: dict[str, Any] = {"model": {"name": "bert", "source": str(tiny_folder())}}
    about |= {"task": task_fields(tmp_path), "triggers": TRIGGERS, "max_length": 128, "seed": 0}
    rows = rows_of(DisplacementStage.model_validate(about), tmp_path)
    ptm = tiny_ptm()
    ptm.module.eval()
    texts = [SENTENCES[i % len(SENTENCES)] for i in range(15)]

    @torch.no_grad()
    def first(given: list[str]) -> torch.Tensor:
        each = [ptm.representation(ptm.module, packed(ptm, [one], 128)) for one in given]
        return torch.cat(each)

    clean = first(texts)
    spread = (clean - clean.mean(0)).pow(2).sum(1).mean().sqrt()
    far = {}
    for trigger in TRIGGERS:
        shift = first([WordTrigger(trigger).put_into(text) for text in texts]) - clean
        far[trigger] = float(shift.mean(0).norm() / spread)
    found = {row["trigger"]: row["value"] for row in rows if row["metric"] == MOVED}
    assert found == pytest.approx(far, rel=1e-4)
    assert by_metric(rows, FARTHEST)["value"] == max(found.values())
    assert by_metric(rows, LOSS)["value"] > 0


def test_candidates_may_be_ranked_by_representations_and_the_last_look_is_fine_tuned(
    tmp_path: Path,
) -> None:
    plan = tiny_search(tmp_path, epochs=3, rank_by="representation")
    assert plan.key != tiny_search(tmp_path, epochs=3).key
    candidate, places = plan.candidate(Settings(0.5)), Locations(None, tmp_path)
    kinds = [type(look) for look in candidate.looks]
    assert kinds == [DisplacementStage, DisplacementStage, FinetuneStage]
    assert [look.snapshot for look in candidate.looks] == [1, 2, 3]
    store, whole = Store.open(tmp_path / "store"), Store.open(tmp_path / "whole")
    run_inline(plan.undefended.stages.values(), store, places)
    purify_tiny(candidate, store, places)
    run_inline([*candidate.purify.lineage(), *candidate.looks], whole, places)
    for look in candidate.looks:
        seen = [row for row in measured(store, look) if row["metric"] != PURIFY_S]
        assert seen == measured(whole, look)
    undefended = plan.undefended_in(store)
    assert undefended.loss is not None
    first, _, last = (look_at(plan, store, one, undefended) for one in candidate.looks)
    assert (first.acc, first.masr) == (None, None)
    assert first.displacement is not None
    assert last.acc is not None
    assert WORST < first.score < 0


def test_less_moved_is_better_and_damage_is_worse_than_any_displacement() -> None:
    scores = [score_of_displacement(*one) for one in ((0.1, 0.0), (3.0, 0.4), (1e9, 0.0))]
    assert scores == sorted(scores, reverse=True)
    damaged = [score_of_displacement(0.0, rise) for rise in (0.6, 5.0, 1e9)]
    assert damaged == sorted(damaged, reverse=True)
    assert WORST < damaged[-1] <= damaged[0] < min(scores)
