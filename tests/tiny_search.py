"""A tiny search: a random BERT, a file of sentences, looks of a few steps."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from samples import corpus_file, task_fields, tiny_folder

from recipe_ray.data.batches import LocalFeed
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.search import Search
from recipe_ray.experiment.search_plan import Candidate, SearchPlan, make_search_plan
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.stages.epoch_evals import purify_with_looks
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.run import StoreCheckpoints, scratch
from recipe_ray.stages.stage import Context
from recipe_ray.store.rows import Measurement
from recipe_ray.store.store import Store

FIT = {"steps": 3, "batch_size": 6, "max_length": 16, "precision": "fp32"}
EPOCHS = 4
STUB_ACC = 0.9


def search_fields(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return what a search file says; its data are written into the folder."""
    corpus = {"name": "file", "path": str(corpus_file(folder)), "size": None}
    task = {**task_fields(folder), "path_dev": str(folder / "test.parquet")}
    return {
        "name": "tiny",
        "model": {"name": "bert", "source": str(tiny_folder())},
        "attack": {"name": "por", "triggers": ["cf", "mn"], "corpus": corpus, "fit": FIT},
        "defense": {"name": "recipe", "fit": {**FIT, "learning_rate": 1e-3}},
        "auxiliary": corpus,
        "trials": 6,
        "epochs": EPOCHS,
        "reduction": 2,
        "space": {"weight_factor": {"low": 0.01, "high": 100}},
        "quick": {"task": {**task, "evaluate_on": "dev"}, "fit": FIT},
        "confirm": {"survivors": 1, "tasks": [task], "seeds": [0, 1]},
        "pretraining": {"corpus": corpus, "fit": FIT},
        "finetuning": FIT,
        **changes,
    }


def tiny_search(folder: Path, **changes: Any) -> SearchPlan:
    """Return the plan of the search."""
    found = Search.model_validate(search_fields(folder, **changes))
    return make_search_plan(found, Locations(None, folder))


def purify_tiny(
    candidate: Candidate,
    store: Store,
    places: Locations,
    on_look: Callable[[Any], None] = lambda look: None,
    start: int = 0,
) -> None:
    """Purify a candidate in this process, with its looks from `start` on."""
    slot = StoreCheckpoints(store, candidate.purify.key)
    runtime = LocalRuntime(checkpoints=slot, checkpoint_every_s=0.0)
    with scratch(store) as folder:
        context = Context(store, LocalFeed(places), places, runtime, folder)
        purify_with_looks(candidate.purify, candidate.looks[start:], context, on_look)


class StubLook(FinetuneStage):
    """A look that measures nothing: ACC 0.9, and a MASR that says how far the factor is from 1."""

    def measure(self, ptm: Any, context: Context) -> list[Measurement]:
        factor = self.columns()["weight_factor"]
        masr = 0.8 if factor is None else stub_masr(factor)
        return [Measurement("acc", STUB_ACC), Measurement("masr", masr)]


def stub_masr(weight_factor: float) -> float:
    """Return the MASR of a stub look: how far the factor is from 1."""
    return min(abs(math.log10(weight_factor)) / 2, 1.0)


def with_stub_looks(plan: SearchPlan) -> SearchPlan:
    """Return the plan with looks whose scores are known before: 0.9 - |log10(factor)| / 2."""
    looks = tuple(StubLook(**look.fields()) for look in plan.template.looks)
    return replace(plan, template=replace(plan.template, looks=looks))
