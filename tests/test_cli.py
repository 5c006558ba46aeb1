"""The commands over experiments and stores as a person meets them: no Ray, no tracebacks."""

import json

import pytest
from cli_samples import experiment
from shell import Shell, shell

from recipe_ray.cli.options import registries
from recipe_ray.store.store import ArtifactId, Store

__all__ = ["shell"]  # a fixture

# --- looking


def test_list_names_every_plugin_and_its_fields(shell: Shell) -> None:
    shown = shell("list").out
    listed = json.loads(shell("list", "--json").out)
    for kind, registry in registries().items():
        assert set(listed[kind]) == set(registry)
        assert all(name in shown for name in registry)
    por = listed["attacks"]["por"]["fields"]
    assert por["insertions"]["default"] == 3
    assert por["fit"]["default"]["learning_rate"] == 1e-5
    assert listed["tasks"]["file"]["fields"]["path_train"]["default"] == "(required)"
    assert "weight_factor" in shell("list", "defenses").out
    assert "did you mean 'attacks'?" in shell.fails("list", "attack")


@pytest.mark.parametrize("command", [["status", "--store"], ["report"]])
def test_looking_at_a_missing_store_names_it_and_makes_none(
    shell: Shell, command: list[str]
) -> None:
    assert "no store at nowhere" in shell.fails(*command, "nowhere")
    assert not (shell.folder / "nowhere").exists()


def test_an_empty_store_is_no_error(shell: Shell) -> None:
    (shell.folder / "store").mkdir()
    assert json.loads(shell("status", "--store", "store", "--json").out) == {
        "experiments": [],
        "drivers": [],
        "stalled_s": None,
        "running": [],
        "failed": [],
        "stale_checkpoints": {"count": 0, "bytes": 0},
    }
    assert shell("report", "store").code == shell("status", "--store", "store").code == 0
    assert json.loads(shell("report", "store", "--json").out)["cells"] == []
    assert "unknown experiment 'x'" in shell.fails("report", "store", "--experiment", "x")


def test_status_shows_where_a_stage_failed_if_asked(shell: Shell) -> None:
    store = Store.open(shell.folder / "store")
    about = {"kind": "purify", "label": "por", "error": "ValueError", "message": "no\x1b[2J"}
    about |= {
        "traceback": 'File "plugin.py", line 3\nValueError: \x1b[2J',
        "time": "2026-11-30T10:00:00+00:00",
    }
    store.record_failure(ArtifactId("purify", "por", "b" * 16), about)
    said = shell("status", "--store", "store").out
    assert "plugin.py" not in said
    assert "--traceback shows where in the code" in said
    said = shell("status", "--store", "store", "--traceback").out
    assert '      File "plugin.py", line 3\n' in said
    assert "\x1b" not in said
    assert "shows where" not in said
    found = json.loads(shell("status", "--store", "store", "--traceback", "--json").out)
    assert found["failed"][0]["traceback"].startswith("File")


# --- experiments


def test_plan_counts_cells_and_stages_and_makes_no_store(shell: Shell) -> None:
    file = experiment(shell.folder)
    planned = json.loads(shell("plan", file, "--store", "store", "--json").out)
    assert planned["summary"]["cells"] == len(planned["cells"]) == 2
    counts = {kind: c["stages"] for kind, c in planned["summary"]["kinds"].items()}
    made = {"pretrain": 0, "backdoor": 1, "purify": 1, "finetune": 2}
    assert counts == {**made, "displacement": 0, "probe": 0, "scan": 0}
    assert len(planned["stages"]) == 4
    shown = shell("plan", file, "--limit", "1", "--store", "store").out
    assert "1 cells, 0 done" in shown
    assert planned["cells"][0]["id"] in shown
    assert not (shell.folder / "store").exists()


def test_debug_runs_one_cell_which_status_and_report_then_show(shell: Shell) -> None:
    file = experiment(shell.folder)
    plan = json.loads(shell("plan", file, "--json").out)
    first = plan["cells"][0]
    done = shell("debug", file, "--cell", first["id"], "--store", "store", "--quiet")
    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["acc", "aasr", "masr"]
    assert shell("debug", file, "--cell", first["title"], "--store", "store", "--quiet") == done
    (status,) = json.loads(shell("status", "--store", "store", "--json").out)["experiments"]
    assert (status["cells_done"], status["cells"], status["stages_done"]) == (1, 2, 2)
    assert "1 of 2 cells" in shell("status", "--store", "store").out
    (row,) = json.loads(shell("report", "store", "--json").out)["cells"]
    assert (row["attack"], row["defense"]) == ("por", "none")
    assert "| por |" in shell("report", "store", "--markdown").out
    left = json.loads(shell("plan", file, "--store", "store", "--json").out)["summary"]
    assert left["kinds"]["backdoor"] == {"stages": 1, "done": 1}
    assert left["time_left"]["known_s"] > 0


def test_an_unknown_cell_or_field_is_named_with_the_nearest(shell: Shell) -> None:
    file = experiment(shell.folder)
    assert "unknown cell 'zzz'" in shell.fails("debug", file, "--cell", "zzz")
    said = shell.fails("plan", file, "--set", "launch.worker.purify=2")
    assert "small.yaml" in said
    assert "did you mean 'workers'?" in said
    assert "has no fields" in shell.fails("plan", file, "--set", "grid.defenses.0.fit=1")
    said = shell.fails("plan", "smal.yaml")
    assert "smal.yaml does not exist (did you mean 'small.yaml'?)" in said
    assert "give an experiment file" in said
