"""Large grids and several nodes, with stages that do nothing: growth is bounded, nodes add up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]


def answer_of(*words: str) -> Any:
    """Run Python in a process of its own; return the JSON in the last line that it printed."""
    paths = [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "RAY_AUTH_MODE": "disabled",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *words], env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_ten_times_the_cells_take_ten_times_the_work_and_little_memory() -> None:
    small = answer_of("-m", "benchmarks.grid_scale", "100")
    large = answer_of("-m", "benchmarks.grid_scale", "1000")
    assert max(large["expand"]) > 0.5 * max(small["expand"])
    assert max(large["plan"]) > 0.3 * max(small["plan"])  # the plan's file grows, too
    assert large["schedule"][0] > 0.5 * small["schedule"][0]
    # of the driver, for each cell more: about one and a half stages
    assert large["driver_growth"][0] - small["driver_growth"][0] < 0.1 * 900


def test_two_nodes_run_twice_the_stages_of_one() -> None:
    one = answer_of("-c", THROUGHPUT, "1", "40")
    two = answer_of("-c", THROUGHPUT, "2", "80")
    assert two > 0.9 * 2 * one


def test_nodes_that_find_work_later_come_to_work_however_short_the_stages() -> None:
    # one stage at first, then more than there are nodes; with Tune's own choice of trials a process
    # that was starting was killed for every one that became free, and one node stayed idle
    ends = answer_of("-c", AT_WORK, "3", "20", "5.2")
    assert ends["all_at_work_after"] < ends["stages"] / 2


@pytest.mark.parametrize("autoscaler", [1, 2])  # Ray's second is what `ray up` and KubeRay use
def test_an_autoscaling_cluster_grows_for_a_sweep_and_shrinks_after_it(autoscaler: int) -> None:
    seen = answer_of("-c", f"import growing_sweep; growing_sweep.main({autoscaler})")
    assert seen["done"] == seen["planned"]
    assert seen["nodes_at_first"] == 1
    assert seen["most_nodes"] == 1 + 3
    assert seen["all_at_work"]
    assert seen["left"] == 1


def test_a_process_that_dies_in_a_batch_costs_one_stage_and_no_other() -> None:
    swept = answer_of("-c", "import deadly_sweep; deadly_sweep.main()")
    assert list(swept["failed"]) == [swept["deadly"]]
    assert swept["failed"][swept["deadly"]].startswith("StageLostError")
    assert swept["done"] == swept["planned"] - 1
    assert max(swept["batches"]) > 1


THROUGHPUT = """
import json, sys
from benchmarks.nodes import throughput
print(json.dumps(throughput(int(sys.argv[1]), int(sys.argv[2]), 1.0)))
"""
AT_WORK = """
import json, sys
from benchmarks.nodes import until_all_work
print(json.dumps(until_all_work(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
"""
