"""Grids of stages that do nothing, or sleep: what is left is what planning and scheduling cost.

The cells, keys and artifacts are real; only `run` is not. Workers import this module, so whoever
starts Ray must have the repository's root in PYTHONPATH (`python -m benchmarks` puts it there).
"""

import time
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from recipe_ray.base.spec import NOT_HASHED
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.plan import Cell, Plan, make_plan
from recipe_ray.experiment.spec import Experiment
from recipe_ray.stages.backdoor import BackdoorStage
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Context, Stage
from recipe_ray.store.rows import Measurement

_TEXTS = {"name": "editorials"}
NOWHERE = Locations(None, Path("/nowhere"))  # embedded texts need no folder to be planned


class _Idle(Stage):
    version: ClassVar[int] = 1  # the real stages' own: their keys, and not this source's hash
    sleep_s: float = Field(0.0, json_schema_extra=NOT_HASHED)

    def run(self, context: Context) -> list[Measurement]:
        time.sleep(self.sleep_s)
        return [Measurement("acc", 0.5)]


class IdlePretrain(_Idle, PretrainStage):
    """Completes nothing."""


class IdleBackdoor(_Idle, BackdoorStage):
    """Poisons nothing."""


class IdlePurify(_Idle, PurifyStage):
    """Cleans nothing."""


class IdleFinetune(_Idle, FinetuneStage):
    """Measures nothing."""


_IDLE: dict[str, Any] = {
    "pretrain": IdlePretrain,
    "backdoor": IdleBackdoor,
    "purify": IdlePurify,
    "finetune": IdleFinetune,
}


def grid_of(cells: int, **launch: Any) -> Experiment:
    """Return an experiment of `cells` cells, a multiple of 20 (of 200 above 400).

    Each cell has a fine-tuning of its own, and each pair of cells a purification.
    """
    attacks, defenses, tasks = (2, 5, 2) if cells <= 400 else (10, 10, 2)
    seeds, rest = divmod(cells, attacks * defenses * tasks)
    if rest or not seeds:
        raise ValueError(f"{cells} cells are no multiple of {attacks * defenses * tasks}")
    por = {"name": "por", "corpus": _TEXTS}
    grid = {
        "models": ["minilm"],
        "attacks": [{**por, "title": f"por{i}", "fit": {"steps": 1 + i}} for i in range(attacks)],
        "defenses": [
            {"name": "recipe", "title": f"recipe{i}", "weight_factor": 1.0 + i}
            for i in range(defenses)
        ],
        "auxiliaries": [_TEXTS],
        "tasks": [
            {"name": "snippets", "title": f"task{i}", "train_size": 10 + i} for i in range(tasks)
        ],
        "seeds": list(range(seeds)),
    }
    values = {"name": "idle", "pretraining": {"corpus": _TEXTS}, "grid": grid, "launch": launch}
    return Experiment.model_validate(values)


def idle(plan: Plan, sleep_s: float = 0.0) -> Plan:
    """Return the plan with every stage replaced by one of the same key that does nothing."""
    idle_by_key: dict[str, Stage] = {}
    for key, stage in plan.stages.items():  # parents come first
        parent = idle_by_key[stage.parent.key] if stage.parent is not None else None
        fields = {**stage.fields(), "parent": parent, "sleep_s": sleep_s}
        idle_by_key[key] = _IDLE[stage.name].model_validate(fields)
    cells = tuple(
        Cell(cell.id, tuple(idle_by_key[stage.key] for stage in cell.stages)) for cell in plan.cells
    )
    about = (plan.name, plan.description, plan.launch)
    return Plan(*about, cells, idle_by_key)


def idle_plan(cells: int, sleep_s: float = 0.0, **launch: Any) -> Plan:
    """Return the plan of a grid whose stages do nothing but sleep."""
    return idle(make_plan(grid_of(cells, **launch), NOWHERE), sleep_s)
