"""What candidates of a search share, and what Tune is told of each of their looks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recipe_ray.distributed.trial import FAILURE
from recipe_ray.distributed.work import Work
from recipe_ray.experiment.search.plan import SearchPlan
from recipe_ray.experiment.search.record import SCORE, Ending, look_at
from recipe_ray.experiment.search.settings import Settings
from recipe_ray.stages.finetune import FinetuneStage

EPOCH, DIVERGED = "epoch", "diverged"


@dataclass(frozen=True)
class SearchWork:
    """What every candidate shares; `ended`: those that ended before, and are only reported."""

    plan: SearchPlan
    work: Work
    undefended_acc: float
    ended: Mapping[Settings, tuple[int, Ending]]


def result_of(look: FinetuneStage, shared: SearchWork) -> dict[str, Any]:
    """Return what Tune is told of a committed look."""
    found = look_at(shared.plan, shared.work.store, look, shared.undefended_acc)
    return {EPOCH: found.epoch, SCORE: found.score, FAILURE: "", DIVERGED: False}
