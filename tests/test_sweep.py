"""The sweep: one Tune run over a real, tiny grid; what fails, what is reused, what is resumed."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_samples import EXPERIMENT

from recipe_ray.base.errors import SpecError
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.collect import run_inline
from recipe_ray.experiment.plan import Plan, make_plan
from recipe_ray.experiment.spec import Experiment, Launch
from recipe_ray.schedule.resources import Capacity, check_fits, demand_of
from recipe_ray.schedule.stage_queue import StageQueue
from recipe_ray.schedule.sweep_progress import SweepEvent, SweepOutcome
from recipe_ray.store.store import Store

BIG = Capacity(cpus=8, gpus=0, node_cpus=8, node_gpus=0)


@pytest.fixture(scope="module")
def plan(few_texts: Locations) -> Plan:
    """Return the plan: three cells, the last of which cannot be trained."""
    return make_plan(Experiment.model_validate(EXPERIMENT), few_texts)


@dataclass(frozen=True)
class Swept:
    """A store in which the first cell was swept, then all three."""

    store: Store
    first: SweepOutcome
    second: SweepOutcome
    events: list[SweepEvent]


@pytest.fixture(scope="module")
def swept(
    plan: Plan, few_texts: Locations, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Swept:
    """Sweep the first cell, with a relative path to the data, then all."""
    from recipe_ray.distributed.sweep import sweep

    store = Store.open(tmp_path_factory.mktemp("store"))
    assert few_texts.data_dir is not None
    relative = Locations(Path(os.path.relpath(few_texts.data_dir)), few_texts.cache_dir)
    first = sweep(plan.limited(1), store, relative)
    events: list[SweepEvent] = []
    second = sweep(plan, store, few_texts, on_event=events.append)
    return Swept(store, first, second, events)


def test_the_second_cell_reuses_the_backdoor(plan: Plan, swept: Swept) -> None:
    kinds = [plan.stages[key].name for key in swept.first.done]
    assert kinds == ["pretrain", "backdoor", "finetune"]
    assert set(swept.second.skipped) == set(swept.first.done)
    assert sorted(plan.stages[key].name for key in swept.second.done) == ["finetune", "purify"]
    artifacts = [artifact.kind for artifact in swept.store.committed().values()]
    assert sorted(artifacts) == ["backdoor", "finetune", "finetune", "pretrain", "purify"]


def test_a_failed_stage_costs_its_descendants_only(plan: Plan, swept: Swept) -> None:
    lost = plan.cells[2].stages[-2:]
    assert list(swept.second.failed) == [stage.key for stage in lost]
    noted = swept.store.failures()
    assert noted[lost[0].key]["error"] == "NonFiniteLossError"
    assert noted[lost[1].key]["error"] == "ParentFailedError"
    assert lost[0].artifact.folder in noted[lost[1].key]["message"]


def test_events_tell_every_stage_once(plan: Plan, swept: Swept) -> None:
    ends = [e.stage.key for e in swept.events if e.kind in ("skipped", "finished", "failed")]
    assert sorted(ends) == sorted(plan.stages)
    started = [e.stage.key for e in swept.events if e.kind == "started"]
    assert sorted(started) == sorted([*swept.second.done, plan.cells[2].stages[-2].key])


def test_a_sweep_of_what_is_there_does_nothing(
    plan: Plan, swept: Swept, few_texts: Locations
) -> None:
    from recipe_ray.distributed.sweep import sweep

    again = sweep(plan.limited(2), swept.store, few_texts)
    assert (again.done, again.failed) == ((), {})
    assert set(again.skipped) == set(plan.limited(2).stages)


def test_a_sweep_collects_the_rows_of_every_cell(plan: Plan, swept: Swept) -> None:
    rows = swept.store.results("tiny").to_pylist()
    cells = {row["cell"] for row in rows if row["metric"] == "acc"}
    assert cells == {plan.cells[0].id, plan.cells[1].id}


def test_one_process_without_ray_gives_the_same_numbers(
    plan: Plan, swept: Swept, few_texts: Locations, tmp_path: Path, one_thread: None
) -> None:
    cell = plan.cells[1]
    store = Store.open(tmp_path)
    run_inline(cell.stages, store, few_texts)
    assert _measured(store, cell.last) == _measured(swept.store, cell.last)
    assert {"acc", "aasr"} <= {metric for metric, *_ in _measured(store, cell.last)}


_DRIVER = """
import sys
from pathlib import Path
from sweep_samples import EXPERIMENT
from recipe_ray.data.sources import Locations
from recipe_ray.distributed.sweep import sweep
from recipe_ray.experiment.plan import make_plan
from recipe_ray.experiment.spec import Experiment
from recipe_ray.store.store import Store
places = Locations(Path(sys.argv[2]), Path(sys.argv[3]))
plan = make_plan(Experiment.model_validate(EXPERIMENT), places).limited(1)
def tell(event):
    print(event.kind, event.stage.key, flush=True)
sweep(plan, Store.open(sys.argv[1]), places, on_event=tell)
"""


@pytest.mark.usefixtures("ray_session")
def test_after_kill_9_only_what_is_missing_runs(
    plan: Plan, few_texts: Locations, tmp_path: Path
) -> None:
    from recipe_ray.distributed.sweep import sweep

    done = _kill_after_one_stage(tmp_path, few_texts)
    store = Store.open(tmp_path)
    made_at = store.manifest(plan.stages[done].artifact)["time"]
    cell = plan.limited(1)
    outcome = sweep(cell, store, few_texts)
    assert not outcome.failed
    assert done in outcome.skipped
    assert set(outcome.done) | set(outcome.skipped) == set(cell.stages)
    assert store.manifest(plan.stages[done].artifact)["time"] == made_at


def test_stages_on_long_chains_come_first(plan: Plan) -> None:
    launch = Launch(workers={"purify": 2})
    room = Capacity(cpus=2, gpus=0, node_cpus=2, node_gpus=0)
    there = [stage.key for stage in plan.cells[0].stages[:2]]
    queue = StageQueue(plan.stages, there, lambda stage: demand_of(stage, launch), lambda: room)
    first = queue.next()
    assert first is not None
    assert first.name == "purify"
    assert queue.next() is None  # both CPUs are taken by its workers
    queue.commit(first)
    started = [queue.next(), queue.next(), queue.next()]
    assert [stage.name for stage in started if stage] == ["purify"]


def test_a_stage_that_the_cluster_cannot_hold_is_named_before_anything_runs(plan: Plan) -> None:
    stages = plan.stages.values()
    with pytest.raises(SpecError, match=r"launch.workers.purify = 9 .* needs 9 CPUs.* has 8"):
        check_fits(stages, Launch(workers={"purify": 9}), BIG)
    with pytest.raises(SpecError, match="no GPU"):
        check_fits(stages, Launch(gpus_per_worker=0.5), BIG)
    with pytest.raises(SpecError, match=r"launch.cpus_per_worker.purify = 9 needs 9 CPUs"):
        check_fits(stages, Launch(cpus_per_worker={"purify": 9}), BIG)
    check_fits(stages, Launch(workers={"purify": 8}), BIG)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch use one thread, as the trials of the sweep do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _measured(store: Store, stage: Any) -> dict[tuple[Any, ...], float]:
    names = ("metric", "trigger", "label", "epoch")
    rows = store.rows(stage.artifact).to_pylist()
    return {tuple(row[name] for name in names): row["value"] for row in rows}


def _kill_after_one_stage(store: Path, places: Locations) -> str:
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    # a Ray of its own: it must die with its driver
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, store, str(places.data_dir), str(places.cache_dir)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert driver.stdout is not None
    with driver:
        for line in driver.stdout:
            kind, key = line.split()
            if kind == "finished":
                driver.send_signal(signal.SIGKILL)
                return key
    raise AssertionError("the driver ended before it finished a stage")
