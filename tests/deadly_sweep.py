"""A sweep on one CPU in which one short stage kills its process; workers import this module."""

import json
import os
import sys
import tempfile
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from benchmarks.noop import NOWHERE, IdleFinetune, idle_plan
from recipe_ray.stages.stage import Context
from recipe_ray.store.rows import Measurement
from recipe_ray.store.store import Store

DEADLY = 30  # its place among the fine-tunings


class DeadlyFinetune(IdleFinetune):
    """Ends the process that it runs in."""

    def run(self, context: Context) -> list[Measurement]:
        os._exit(1)


def main() -> None:
    """Sweep forty cells and print as JSON what was planned, done and lost, and the batches."""
    from recipe_ray.distributed.cluster import SETTINGS

    os.environ.update(SETTINGS)
    import ray

    from recipe_ray.distributed.sweep import sweep
    from recipe_ray.distributed.trial import StageSearcher

    plan = idle_plan(40, max_failures=1)
    leaf = [stage for stage in plan.stages.values() if stage.name == "finetune"][DEADLY]
    deadly = DeadlyFinetune.model_validate(leaf.fields())
    plan = replace(plan, cells=(), stages={**plan.stages, deadly.key: deadly})
    batches: list[int] = []
    suggest = StageSearcher.suggest

    def counted(self: StageSearcher, trial_id: str) -> Any:
        suggested = suggest(self, trial_id)
        batches.extend([len(suggested["stages"])] if isinstance(suggested, dict) else [])
        return suggested

    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    with (
        patch.object(StageSearcher, "suggest", counted),
        tempfile.TemporaryDirectory() as folder,
    ):
        outcome = sweep(plan, Store.open(folder), NOWHERE)
    ray.shutdown()
    told = {"planned": len(plan.stages), "done": len(outcome.done), "failed": outcome.failed}
    sys.stdout.write(json.dumps({**told, "deadly": deadly.key, "batches": batches}) + "\n")
