"""An experiment's result rows: every stage's measurements, with experiment and cell added."""

import pyarrow as pa

from recipe_ray.experiment.plan import Plan
from recipe_ray.stages.rows import result_rows
from recipe_ray.stages.stage import Stage
from recipe_ray.stages.store import Store


def collect(plan: Plan, store: Store, stage: Stage) -> None:
    """Write the rows of one committed stage into the experiment's results; twice is harmless."""
    rows = store.rows(stage.artifact)
    # names are the experiment's own: the artifact may have been made under other titles
    for name, value in stage.columns().items():
        place = rows.schema.get_field_index(name)
        field = rows.schema.field(place)
        rows = rows.set_column(place, field, pa.array([value] * rows.num_rows, field.type))
    if rows.num_rows:
        name = plan.name
        store.write_results(name, stage.key, result_rows(rows, name, plan.cells_of(stage.key)))


def plan_record(plan: Plan) -> dict[str, object]:
    """Return what `status` and `report` must know of a plan: its stages and cells by name."""
    return {
        "experiment": plan.name,
        "paper": plan.paper.model_dump(mode="json") if plan.paper is not None else None,
        "cells": [
            {"id": cell.id, "title": cell.title, "stages": [stage.key for stage in cell.stages]}
            for cell in plan.cells
        ],
        "stages": {
            key: {
                "kind": stage.name,
                "label": stage.label(),
                "seed": stage.seed,
                "parent": stage.parent.key if stage.parent is not None else None,
            }
            for key, stage in plan.stages.items()
        },
    }
