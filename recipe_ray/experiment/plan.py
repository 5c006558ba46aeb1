"""From the grid to cells, from cells to distinct stages: what a sweep has to do.

A cell is one (model, attack, defense, auxiliary data, task or probe, seed); its last stage is the
fine-tuning or the probe that measures it. Cells share stages wherever their keys are the same.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import product
from typing import Any

from recipe_ray.attacks.attack import Attack
from recipe_ray.base.spec import explained
from recipe_ray.data.corpus import Corpus
from recipe_ray.data.sources import Locations
from recipe_ray.defenses.defense import Defense
from recipe_ray.experiment.spec import Block, Experiment, Launch, Paper, Pretraining, Probe
from recipe_ray.models.family import ModelRef
from recipe_ray.stages.backdoor import BackdoorStage
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.stages.pretrain import PretrainStage
from recipe_ray.stages.probe import ProbeStage
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Stage
from recipe_ray.tasks.task import Task

KINDS = ("pretrain", "backdoor", "purify", "finetune", "probe")


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
    Raises DataError where data cannot be found.
    """
    builder = _Builder(experiment, locations)
    leaves: dict[str, Stage] = {}
    with explained(f"experiment {experiment.name}"):
        for leaf in builder.leaves():
            leaves.setdefault(leaf.key, leaf)
            if len(leaves) == limit:
                break
    cells = tuple(Cell(key[:8], tuple(leaf.lineage())) for key, leaf in leaves.items())
    about = (experiment.name, experiment.description, experiment.launch)
    return Plan(*about, cells, _stages_of(cells), experiment.paper)


def plan_of_one(stage: Stage, launch: Launch) -> Plan:
    """Return the plan of one stage and its ancestors, for commands that take one model."""
    return Plan(stage.name, "", launch, (), {one.key: one for one in stage.lineage()})


def _stages_of(cells: tuple[Cell, ...]) -> dict[str, Stage]:
    stages = {stage.key: stage for cell in cells for stage in cell.stages}
    ordered = sorted(stages.values(), key=lambda stage: KINDS.index(stage.name))
    return {stage.key: stage for stage in ordered}


class _Builder:
    """Builds the stages of cells, each shared one once."""

    def __init__(self, experiment: Experiment, locations: Locations) -> None:
        self._experiment = _pinned(experiment)
        self._locations = locations
        self._ptm = cache(self._make_ptm)
        self._purified = cache(self._make_purified)
        self._corpus_content = cache(lambda c: c.identity_at(locations)["source"])
        self._task_content = cache(lambda t: t.identity_at(locations)["sources"])

    def leaves(self) -> Iterator[Stage]:
        """Yield the last stage of every cell."""
        for block in self._experiment.grid:
            for model, attack, defense, corpus in product(
                block.models, block.attacks, block.defenses, block.auxiliaries
            ):
                measured: list[Task | Probe] = [*block.tasks, *block.probes]
                for task, seed in product(measured, block.seeds):
                    yield from self._cells(block, model, attack, defense, corpus, task, seed)

    def _cells(
        self,
        block: Block,
        model: ModelRef,
        attack: Attack,
        defense: Defense,
        corpus: Corpus,
        task: Task | Probe,
        seed: int,
    ) -> Iterator[Stage]:
        ptm = self._ptm(model, attack, self._experiment.pretraining_of(block))
        snapshots: tuple[int | None, ...] = (None,)
        if defense.acts:
            if block.sample_by_seed:
                corpus = corpus.revised(sample_seed=corpus.sample_seed + seed)
            ptm = self._purified(
                ptm, model, defense, corpus, seed if defense.draws else 0, block.snapshots
            )
            snapshots = block.snapshots or snapshots
        if isinstance(task, Probe):
            yield self._probe(ptm, model, task, seed)
            return
        for snapshot in snapshots:
            yield self._finetune(block, ptm, model, attack, task, seed, snapshot)

    def _make_ptm(self, model: ModelRef, attack: Attack, how: Pretraining) -> Stage | None:
        seed, origin = self._experiment.release_seed, None
        if model.needs_pretraining:
            origin = PretrainStage(
                model=model,
                corpus=how.corpus,
                trainable=how.trainable,
                fit=how.fit,
                held_out=how.held_out,
                seed=seed,
                content=self._corpus_content(how.corpus),
            )
        if not attack.poisons:
            return origin
        contents = {corpus.name: self._corpus_content(corpus) for corpus in attack.corpora()}
        return BackdoorStage(model=model, parent=origin, attack=attack, seed=seed, content=contents)

    def _make_purified(
        self,
        ptm: Stage | None,
        model: ModelRef,
        defense: Defense,
        corpus: Corpus,
        seed: int,
        snapshots: tuple[int, ...],
    ) -> Stage:
        return PurifyStage(
            model=model,
            parent=ptm,
            defense=defense,
            corpus=corpus,
            held_out=self._experiment.held_out,
            snapshots=snapshots,
            seed=seed,
            content=self._corpus_content(corpus),
        )

    def _probe(self, ptm: Stage | None, model: ModelRef, probe: Probe, seed: int) -> Stage:
        return ProbeStage(
            model=model,
            parent=ptm,
            task=probe.task,
            trigger=probe.trigger,
            without=probe.without,
            max_length=probe.max_length,
            seed=seed,
            content=self._task_content(probe.task),
        )

    def _finetune(
        self,
        block: Block,
        ptm: Stage | None,
        model: ModelRef,
        attack: Attack,
        task: Task,
        seed: int,
        snapshot: int | None,
    ) -> Stage:
        return FinetuneStage(
            model=model,
            parent=ptm,
            task=task,
            triggers=self._triggers(model, attack),
            fit=self._experiment.finetuning_of(block),
            snapshot=snapshot,
            seed=seed,
            content=self._task_content(task),
        )

    def _triggers(self, model: ModelRef, attack: Attack) -> tuple[str, ...]:
        if attack.poisons or attack.triggers:
            return attack.triggers
        # the clean PTM is the floor of every attack on this model in the experiment
        attacks = (a for b in self._experiment.grid if model in b.models for a in b.attacks)
        return tuple(sorted({trigger for other in attacks for trigger in other.triggers}))


def _pinned(experiment: Experiment) -> Experiment:
    # looked up once, here: what a worker loads later is what the key says
    blocks = [
        block.revised(
            models=[model.pinned() for model in block.models],
            attacks=[attack.pinned() for attack in block.attacks],
        )
        for block in experiment.grid
    ]
    return experiment.revised(grid=blocks)


def plan_summary(plan: Plan, done: set[str]) -> dict[str, Any]:
    """Return the counts of cells and stages, by kind and in all, and how many are done."""
    by_kind = {}
    for kind in KINDS:
        keys = [key for key, stage in plan.stages.items() if stage.name == kind]
        by_kind[kind] = {"stages": len(keys), "done": sum(key in done for key in keys)}
    cells_done = sum(cell.last.key in done for cell in plan.cells)
    return {"cells": len(plan.cells), "cells_done": cells_done, "kinds": by_kind}
