"""From the grid to cells, from cells to distinct stages: the work of a sweep.

A cell is one (model, attack, defense, auxiliary data, task or probe, seed); its last stage is the
fine-tuning or the probe that measures it. Cells share stages if their keys are the same.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.base.spec import explained
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.spec import Block, Experiment, Launch, Paper
from recipe_ray.stages.kind import Planning, Point
from recipe_ray.stages.stage import Stage, kinds


@dataclass(frozen=True)
class Cell:
    """One cell; `stages` are its stages, the oldest first."""

    id: str
    stages: tuple[Stage, ...]

    @property
    def last(self) -> Stage:
        """The fine-tuning or probe, which measures the cell."""
        return self.stages[-1]

    @property
    def title(self) -> str:
        """What a person calls it."""
        return f"{self.last.label()}.s{self.last.seed}"


@dataclass(frozen=True)
class Plan:
    """The cells of an experiment and their distinct stages, parents before children."""

    name: str
    description: str
    launch: Launch
    cells: tuple[Cell, ...]
    stages: dict[str, Stage]
    paper: Paper | None = None

    def cells_of(self, key: str) -> list[str | None]:
        """Return the cells that a stage measures; [None] for a stage that cells share."""
        return self._cells_by_last.get(key, [None])

    @cached_property
    def _cells_by_last(self) -> dict[str, list[str | None]]:
        found: dict[str, list[str | None]] = {}
        for cell in self.cells:
            found.setdefault(cell.last.key, []).append(cell.id)
        return found

    def limited(self, count: int) -> "Plan":
        """Return the plan of the first `count` cells."""
        return replace(self, cells=self.cells[:count], stages=_stages_of(self.cells[:count]))


def make_plan(experiment: Experiment, locations: Locations, limit: int | None = None) -> Plan:
    """Expand the grid; every stage's data are resolved to their content, nothing is run.

    `limit`: only the first so many cells are built.
    Raises DataError if data cannot be found.
    """
    leaves: dict[str, Stage] = {}
    with explained(f"experiment {experiment.name}"):
        for leaf in _leaves(_pinned(experiment), Planning(locations)):
            leaves.setdefault(leaf.key, leaf)
            if len(leaves) == limit:
                break
    cells = tuple(Cell(key[:8], tuple(leaf.lineage())) for key, leaf in leaves.items())
    about = (experiment.name, experiment.description, experiment.launch)
    return Plan(*about, cells, _stages_of(cells), experiment.paper)


def plan_of(command: str, leaves: Iterable[Stage], launch: Launch) -> Plan:
    """Return the plan of a command on models: its stages and their ancestors.

    Its name has the command and a hash of them, so a store keeps what each such command made.
    """
    stages = {one.key: one for leaf in leaves for one in leaf.lineage()}
    return Plan(f"{command}-{fingerprint(sorted(stages))[:8]}", "", launch, (), stages)


def _stages_of(cells: tuple[Cell, ...]) -> dict[str, Stage]:
    stages = {stage.key: stage for cell in cells for stage in cell.stages}
    place = {kind.name: number for number, kind in enumerate(kinds())}
    ordered = sorted(stages.values(), key=lambda stage: place[stage.name])
    return {stage.key: stage for stage in ordered}


def _leaves(experiment: Experiment, planning: Planning) -> Iterator[Stage]:
    """Yield the last stage of every cell, as the kinds of stages plan them."""
    for block in experiment.grid:
        axes = block.axes
        for model, *values in product(block.models, *axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            yield from _cells(Point(experiment, block, model, chosen, planning))


def _cells(point: Point) -> Iterator[Stage]:
    block: Block = point.block
    found = kinds()
    ptms: dict[int, list[Stage | None]] = {}
    for seed in block.seeds:
        ptms[seed] = [None]
        for kind in (kind for kind in found if not kind.cells):
            at = replace(point, seed=seed)
            ptms[seed] = [made for ptm in ptms[seed] for made in kind.planned(at, ptm)]
    for kind in (kind for kind in found if kind.cells):
        for entry, seed in product(getattr(block, kind.cells), block.seeds):
            at = replace(point, seed=seed, entry=entry)
            for ptm in ptms[seed]:
                yield from (leaf for leaf in kind.planned(at, ptm) if leaf is not None)


def _pinned(experiment: Experiment) -> Experiment:
    # looked up once, here: what a worker loads later is what the key says
    blocks = [
        block.revised(
            **{
                name: tuple(one.pinned() if hasattr(one, "pinned") else one for one in value)
                for name, value in block.fields().items()
                if isinstance(value, tuple)
            }
        )
        for block in experiment.grid
    ]
    return experiment.revised(grid=blocks)


def plan_summary(plan: Plan, done: set[str]) -> dict[str, Any]:
    """Return the counts of cells and stages, by kind and in all, and how many are done."""
    by_kind = {}
    for kind in kinds():
        keys = [key for key, stage in plan.stages.items() if stage.name == kind.name]
        by_kind[kind.name] = {"stages": len(keys), "done": sum(key in done for key in keys)}
    cells_done = sum(cell.last.key in done for cell in plan.cells)
    return {"cells": len(plan.cells), "cells_done": cells_done, "kinds": by_kind}
