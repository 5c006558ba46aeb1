"""`plan --cluster`: the sweep's own queue on described nodes; what it says of time and money."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_cell import run, tiny_plan
from typer.testing import CliRunner

from recipe_ray.base.errors import SpecError
from recipe_ray.cli.app import app
from recipe_ray.experiment.plan import Plan
from recipe_ray.schedule.durations import stage_seconds
from recipe_ray.schedule.forecast import compare_clusters, forecast
from recipe_ray.schedule.resources import ClusterSpec, load_cluster

FREE = {"start_s": 0, "process_s": 0, "reuse_s": 0, "group_s": 0}
SECONDS = {"pretrain": 100, "backdoor": 100, "purify": 200, "finetune": 100}


def cluster(**changes: Any) -> ClusterSpec:
    """Return one node of one CPU on which a stage costs nothing but its own seconds."""
    node = {"name": "small", "cpus": 1}
    values = {"nodes": [node], "overheads": FREE, "stage_seconds": SECONDS, **changes}
    return ClusterSpec.model_validate(values)


def seconds_of(plan: Plan) -> dict[str, float]:
    """Return the given seconds of every stage."""
    return stage_seconds(plan, cluster(), None, ())


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Return one backdoor, two purifications of it, and two fine-tunings of each."""
    defenses = [{"name": "recipe", "title": f"recipe{i}", "weight_factor": i} for i in (1, 2)]
    return tiny_plan(tmp_path, defenses=defenses, seeds=[0]).limited(2)


def test_one_core_takes_the_sum_of_all_stages_and_enough_the_longest_chain(plan: Plan) -> None:
    seconds = seconds_of(plan)
    assert len(seconds) == 5
    assert forecast(plan, cluster(), seconds, ()).makespan_s == 700
    wide = forecast(plan, cluster(nodes=[{"name": "wide", "cpus": 8}]), seconds, ())
    assert wide.makespan_s == 400  # backdoor, purify, finetune
    assert wide.cpu_hours == pytest.approx(700 / 3600)
    assert wide.utilisation == pytest.approx(700 / (8 * 400))


def test_what_is_done_is_left_out(plan: Plan) -> None:
    done = [key for key, stage in plan.stages.items() if stage.name != "finetune"]
    assert forecast(plan, cluster(), seconds_of(plan), done).makespan_s == 200


def test_a_stage_needs_one_node_that_holds_its_worker(plan: Plan) -> None:
    wide = plan.launch.revised(cpus_per_worker=2)
    plan = Plan(plan.name, "", wide, plan.cells, plan.stages)
    many_small = cluster(nodes=[{"name": "small", "count": 4, "cpus": 1}])
    with pytest.raises(SpecError, match="largest node has 1"):
        forecast(plan, many_small, seconds_of(plan), ())
    # two nodes of three CPUs hold two workers of two, although six CPUs would hold three
    threes = cluster(nodes=[{"name": "three", "count": 2, "cpus": 3}])
    assert forecast(plan, threes, seconds_of(plan), ()).makespan_s == 400


def test_processes_are_started_once_and_worker_groups_every_time(plan: Plan) -> None:
    dear = {"start_s": 10, "process_s": 5, "reuse_s": 1, "group_s": 20}
    one = forecast(plan, cluster(overheads=dear), seconds_of(plan), ())
    assert one.makespan_s == 700 + 10 + 5 + 4 * 1
    launch = plan.launch.revised(workers={"purify": 2})
    nested = Plan(plan.name, "", launch, plan.cells, plan.stages)
    two_cores = cluster(overheads=dear, nodes=[{"name": "two", "cpus": 2}])
    found = forecast(nested, two_cores, seconds_of(plan), ())
    # backdoor, both purifications in turn, both fine-tunings: one in the process that the backdoor
    # had, the other in a new one
    assert found.makespan_s == 10 + 105 + 2 * 220 + 105


def test_interruptions_make_spot_nodes_slower(plan: Plan) -> None:
    spot = {"name": "spot", "cpus": 1, "interruptions_per_hour": 6}
    found = forecast(plan, cluster(nodes=[spot]), seconds_of(plan), ())
    assert found.makespan_s == pytest.approx(700 * (1 + 6 / 3600 * 30))


def test_the_recommendation_is_the_fastest_within_a_tenth_of_the_cheapest(plan: Plan) -> None:
    priced = [{"name": "small", "cpus": 1, "price_per_hour": 1.0}]
    compared = compare_clusters(plan, cluster(nodes=priced, max_nodes=3), seconds_of(plan), ())
    assert [found.makespan_s for found in compared.by_nodes] == [700, 400, 400]
    money = [found.money for found in compared.by_nodes]
    assert money == pytest.approx([700 / 3600, 800 / 3600, 1200 / 3600])
    assert compared.recommended.nodes == 1  # two are 14 % dearer
    free = compare_clusters(plan, cluster(max_nodes=3), seconds_of(plan), ())
    assert free.recommended.nodes == 2


def test_times_come_from_the_file_then_from_the_store_scaled_else_an_error(
    tmp_path: Path, plan: Plan
) -> None:
    store = run(plan.limited(1), tmp_path)
    bare = cluster(stage_seconds={"purify": 50}, measured_factor=100.0)
    seconds = stage_seconds(plan, bare, store, ())
    for stage in plan.cells[0].stages:
        wall_s = store.manifest(stage.artifact)["wall_s"]
        expected = 50 if stage.name == "purify" else 100 * wall_s
        assert seconds[stage.key] == pytest.approx(expected)
    with pytest.raises(SpecError, match=r"backdoor of .* \(1 stages\).*stage_seconds"):
        stage_seconds(plan, bare, None, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nodes: [{name: a, cpus: 1, gpu: 1}]", "did you mean 'gpus'"),
        ("nodes: []", "nodes"),
        ("nodes: [{name: a, cpus: 1}]\nstage_seconds: {purfy: 1}", "did you mean 'purify'"),
        ("nodes: [{name: a, cpus: 1}]\nstage_seconds: {purify: 0}", "purify: 0 is no time"),
        ("- 1", "expected a mapping with 'nodes'"),
    ],
)
def test_a_wrong_cluster_file_is_named_with_the_field(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=message) as caught:
        load_cluster(file)
    assert str(file) in str(caught.value)


def test_the_command_prints_a_table_or_json_and_makes_no_store(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    two_cores = cluster(nodes=[{"name": "two", "cpus": 2}], max_nodes=2)
    file.write_text(json.dumps(two_cores.model_dump(mode="json")))  # JSON is YAML
    experiment = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
    words = ["plan", str(experiment), "--cluster", str(file), "--store", str(tmp_path / "none")]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    assert "recommended" in shown.output
    record = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert len(record["by_nodes"]) == 2
    assert record["described"]["nodes"] == 1
    assert not (tmp_path / "none").exists()
