"""Where stages find room: GPUs by kind and in parts, clusters that grow, checkpoints left over."""

import json
from pathlib import Path

import pytest
from tiny_cell import run, tiny_plan
from typer.testing import CliRunner

from recipe_ray.base.errors import SpecError
from recipe_ray.base.spec import explained
from recipe_ray.cli.app import app
from recipe_ray.distributed.cluster import ClusterCapacity, room
from recipe_ray.distributed.trial import resources_of
from recipe_ray.experiment.collect import plan_record
from recipe_ray.experiment.plan import Plan
from recipe_ray.experiment.spec import Growth, Launch
from recipe_ray.schedule.resources import Capacity, check_fits, demand_of
from recipe_ray.schedule.stage_queue import StageQueue

HEAD = {"CPU": 0.0, "node:__internal_head__": 1.0}
NODE = {"CPU": 8.0, "GPU": 1.0}


def launch(**values: object) -> Launch:
    """Return launch settings as a file would give them."""
    return Launch.model_validate(values)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Return one backdoor, one purification of it, and six fine-tunings of that."""
    found = tiny_plan(tmp_path, seeds=[0])
    return found


def test_gpus_are_given_for_all_kinds_or_for_each() -> None:
    assert launch(gpus_per_worker=0.25).gpus_per_worker["finetune"] == 0.25
    own = launch(gpus_per_worker={"finetune": 0.25, "purify": 1}).gpus_per_worker
    assert own == {"finetune": 0.25, "purify": 1}


def test_a_worker_shares_one_gpu_or_holds_whole_ones() -> None:
    assert launch(gpus_per_worker=2).gpus_per_worker["purify"] == 2
    with pytest.raises(SpecError, match=r"1\.5 GPUs: allowed are up to 1"), explained("file"):
        launch(gpus_per_worker=1.5)


def test_small_stages_share_a_gpu_and_large_ones_hold_several(plan: Plan) -> None:
    split = launch(gpus_per_worker={"finetune": 0.25, "purify": 1}, workers={"purify": 2})
    by_kind = {stage.name: stage for stage in plan.stages.values()}
    assert demand_of(by_kind["purify"], split).gpus == 2
    bundles = resources_of(by_kind["finetune"], split).bundles
    assert bundles == [{"CPU": 1.0, "GPU": 0.25}]
    # a nested group's trial itself takes nothing but a place on the head, which has no CPU
    assert resources_of(by_kind["purify"], split).bundles == [{"node:__internal_head__": 0.001}]


def test_four_fine_tunings_run_on_one_gpu_at_a_time(plan: Plan) -> None:
    shared = launch(gpus_per_worker={"finetune": 0.25})
    leaf = plan.cells[0].last
    stages = {}
    for number in range(6):
        stage = type(leaf).model_validate({**leaf.fields(), "parent": None, "seed": 100 + number})
        stages[stage.key] = stage
    one_gpu = Capacity(cpus=8, gpus=1, node_cpus=8, node_gpus=1)
    queue = StageQueue(stages, (), lambda stage: demand_of(stage, shared), lambda: one_gpu)
    started = [queue.next() for _ in range(6)]
    assert [stage is not None for stage in started] == [True] * 4 + [False] * 2


def test_a_cluster_that_grows_is_counted_as_what_it_may_become(plan: Plan) -> None:
    growth = Growth(nodes=4, cpus=8, gpus=1)
    assert room([HEAD], None) == Capacity(0, 0, 0, 0)
    assert room([HEAD], growth) == Capacity(32, 4, 8, 1)
    assert room([HEAD, *[NODE] * 5], growth) == Capacity(40, 5, 8, 1)  # somebody added one
    needs_gpus = launch(gpus_per_worker=1, workers={"purify": 4})
    with pytest.raises(SpecError, match="no GPU"):
        check_fits(plan.stages.values(), needs_gpus, room([HEAD], None))
    check_fits(plan.stages.values(), needs_gpus, room([HEAD], growth))


def test_the_cluster_is_asked_at_most_once_a_second() -> None:
    asked: list[int] = []
    capacity = ClusterCapacity(None, lambda: asked.append(1) or [NODE])
    assert capacity() == capacity() == Capacity(8, 1, 8, 1)
    assert len(asked) == 1


def test_a_finished_stage_leaves_no_checkpoint(tmp_path: Path, plan: Plan) -> None:
    store = run(plan, tmp_path, checkpoint_every_s=1e-6)
    assert store.checkpoints() == {}


def test_status_names_and_prunes_checkpoints_that_nothing_resumes_from(
    tmp_path: Path, plan: Plan
) -> None:
    store = run(plan.limited(0), tmp_path)
    store.write_plan(plan.name, plan_record(plan))
    wanted = next(iter(plan.stages))
    store.write_checkpoint(wanted, b"12345")
    store.write_checkpoint("0123456789abcdef", b"1234567")
    words = ["status", "--store", str(tmp_path / "store")]
    assert "1 checkpoints (0.0 MB): nothing will" in CliRunner().invoke(app, words).output
    record = json.loads(CliRunner().invoke(app, [*words, "--prune", "--json"]).output)
    assert record["stale_checkpoints"] == {"count": 1, "bytes": 7}
    assert store.checkpoints() == {wanted: 5}
