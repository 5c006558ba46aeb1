"""`recipe_ray.scan`, `purify`, `evaluate`, `compare`, `run` and `results`, called from Python."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from cli_samples import experiment
from safetensors.torch import load_file
from samples import corpus_file, task_fields, tiny_folder
from scan_samples import looking_with_little, texts
from shell import Shell, shell

import recipe_ray
from recipe_ray.api.running import Advance
from recipe_ray.base.errors import HarmError, UserError

__all__ = ["shell"]  # a fixture

MODEL = str(tiny_folder())
NAMES = ("compare", "evaluate", "purify", "results", "run", "scan")
QUICK = {"steps": 3, "precision": "fp32"}
QUICK_RECIPE = {"fit.steps": 3, "fit.precision": "fp32"}
HEAVY = ("torch", "transformers", "ray", "pydantic", "numpy", "pyarrow", "pandas", "typer")


def test_the_package_loads_nothing_until_a_function_is_called() -> None:
    code = f"""
import sys, recipe_ray
assert set({NAMES!r}) <= set(dir(recipe_ray))
functions = [getattr(recipe_ray, name) for name in {NAMES!r}]
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_that_there_is_not_is_an_attribute_error() -> None:
    name = "scann"
    with pytest.raises(AttributeError, match=name):
        getattr(recipe_ray, name)


def test_evaluate_returns_what_the_command_prints(shell: Shell) -> None:
    task = task_fields(shell.folder)
    words = ["--task", json.dumps(task), "--triggers", "cf", "--set", "steps=3"]
    printed = json.loads(shell("evaluate", MODEL, *words, "--set", "precision=fp32", "--json").out)
    seen: list[Advance] = []
    found = recipe_ray.evaluate(
        MODEL, task, triggers=["cf"], changes=QUICK, keep_classifier="kept", progress=seen.append
    )
    by_metric = {row["metric"]: row["value"] for row in printed}
    assert (found.acc, found.masr) == (by_metric["acc"], by_metric["masr"])
    assert found.asr == {"cf": by_metric["masr"]}
    frame = found.to_pandas()
    assert set(frame["metric"]) >= {"acc", "asr", "aasr", "masr"}
    assert found.to_arrow().num_rows == len(frame)
    assert (shell.folder / "kept/classifier.safetensors").is_file()
    assert seen[-1].step == seen[-1].num_steps == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.acc = 1.0


def test_compare_has_both_sides_the_floor_and_the_change(shell: Shell) -> None:
    task = task_fields(shell.folder)
    found = recipe_ray.compare(
        Path(MODEL),
        MODEL,
        task,
        floor=MODEL,
        triggers="cf,mn",
        seeds=2,
        changes=QUICK,
        store="kept",
    )
    assert set(found.sides) == {"A", "B", "floor"}
    assert found.change("masr") == found.change("asr cf") == 0
    rows = found.to_arrow().to_pylist()
    assert {row["side"] for row in rows} == {"A", "B", "floor"}
    assert all(row["n"] == 2 and row["low"] <= row["mean"] <= row["high"] for row in rows)
    with pytest.raises(UserError, match="did you mean 'masr'"):
        found.change("mast")


@pytest.fixture
def aux(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return texts, while scans look at little."""
    looking_with_little(monkeypatch)
    return texts(shell.folder)


def test_purify_leaves_what_the_command_leaves_and_prints_nothing(
    shell: Shell, aux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set", "fit.steps=3", "--set", "fit.precision=fp32", "--accept-harm"]
    done = shell("purify", MODEL, "--aux", aux, "--out", "one", *words)
    capsys.readouterr()
    found = recipe_ray.purify(MODEL, aux, "two", changes=QUICK_RECIPE, accept_harm=True)
    assert capsys.readouterr() == ("", "")
    one, two = (load_file(shell.folder / out / "model.safetensors") for out in ("one", "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert (found.folder, found.exit_code) == (Path("two"), done.code)
    assert json.loads(Path("two/result.json").read_text()) == found.result
    measured = dict(zip(*found.to_arrow().to_pydict().values(), strict=True))
    assert measured["drift"] == found.result["drift"]
    assert found.warnings == tuple(found.result["warnings"])


def test_scan_finds_what_the_command_finds(shell: Shell, aux: Path) -> None:
    vocabulary: Any = {"name": "vocabulary", "close": {"texts": 4, "length": 8}}
    vocabulary |= {"fresh": {"texts": 6, "length": 10}, "controls": 32, "confirmed": 6}
    vocabulary |= {"continued": 1}
    found = recipe_ray.scan([MODEL], aux, detectors=[vocabulary], store="kept")
    words = ["--data", aux, "--detector", json.dumps(vocabulary), "--store", "kept", "--json"]
    done = shell("scan", MODEL, *words)
    (printed,) = json.loads(done.out)["models"]
    (model,) = found.models
    assert (found.exit_code, found.suspicious) == (done.code, None)
    assert model.verdict == "not calibrated"
    rows = found.to_arrow().to_pylist()
    assert {row["detector"] for row in rows} == {"vocabulary"}
    (detector,) = printed["detectors"]
    assert {row["input"] for row in rows} == {one["shown"] for one in detector["suspects"]}


def test_of_several_models_the_one_that_cannot_be_opened_has_an_error(
    shell: Shell, aux: Path
) -> None:
    found = recipe_ray.scan(["no/where", MODEL], "nothing.txt")
    assert [one.suspicious for one in found.models] == [None, None]
    assert "nothing.txt does not exist" in str(found.models[1].error)
    assert (found.exit_code, len(found.warnings)) == (2, 2)


def test_an_experiment_as_a_dict_runs_here_and_its_results_are_read_back(shell: Shell) -> None:
    values = yaml.safe_load(experiment(shell.folder).read_text())
    done = recipe_ray.run(values, store="kept", in_process=True, limit=1)
    assert done.failed == {}
    assert set(done.done) == {row["stage"] for row in done.to_arrow().to_pylist()}
    again = recipe_ray.run(values, store="kept", in_process=True, limit=1)
    assert (again.done, set(again.skipped)) == ((), set(done.done))
    found = recipe_ray.results("kept")
    assert found.to_arrow().num_rows == done.to_arrow().num_rows > 0
    assert found.plans["small"] is not None
    (cell,) = found.tables()
    assert cell["acc"]["n"] == 1


def test_a_failed_stage_of_an_experiment_is_named_and_the_other_cells_run(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_ray.stages.purify import PurifyStage

    def fail(*_: Any) -> Any:
        raise UserError("no luck")

    monkeypatch.setattr(PurifyStage, "run", fail)
    done = recipe_ray.run(experiment(shell.folder), store="kept", in_process=True)
    assert list(done.failed.values()) == ["no luck"]
    assert len(done.done) == 2  # the backdoor, and its fine-tuning without a defense


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: recipe_ray.purify("minlm", "wikitext", "out"), "did you mean 'minilm'"),
        (lambda: recipe_ray.purify(MODEL, "wikitxt", "out"), "did you mean 'wikitext'"),
        (lambda: recipe_ray.purify(7, "wikitext", "out"), "text or a mapping, not int"),
        (lambda: recipe_ray.purify(MODEL, "T.txt", "out", triggers="cf"), "give evaluate=TASK"),
        (lambda: recipe_ray.purify(MODEL, "T.txt", "out", floor=MODEL), "--evaluate TASK"),
        (lambda: recipe_ray.purify(MODEL, "T.txt", "out", changes="fit.steps=3"), "give a dict"),
        (lambda: recipe_ray.purify(MODEL, "T.txt", "out", workers=0), "workers: expected 1"),
        (lambda: recipe_ray.evaluate(MODEL, "sst22"), "did you mean 'sst2'"),
        (lambda: recipe_ray.evaluate(MODEL, {"path": "a"}), "no `name`"),
        (lambda: recipe_ray.evaluate(MODEL, "snippets", triggers=["", "a"]), "not empty"),
        (lambda: recipe_ray.compare(MODEL, MODEL, "snippets", seeds=0), "seeds: expected 1"),
        (lambda: recipe_ray.scan([], "T.txt"), "one or more"),
        (lambda: recipe_ray.scan(MODEL, "T.txt", detectors="vocab"), "'vocabulary'"),
        (lambda: recipe_ray.run("missing.yaml"), "missing.yaml does not exist"),
        (lambda: recipe_ray.run({"name": "a", "gird": {}}), "did you mean 'grid'"),
        (lambda: recipe_ray.run({"grid": [1]}, in_process=True), "the experiment"),
        (lambda: recipe_ray.run(["a"]), "a file or a mapping, not list"),
        (lambda: recipe_ray.results("missing"), "no store at missing"),
    ],
)
def test_what_a_caller_gives_wrongly_is_a_user_error(shell: Shell, call: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert said in str(caught.value)
    assert list(shell.folder.glob("out*")) == []


def test_likely_harm_is_an_error_before_anything_is_changed(shell: Shell) -> None:
    aux = corpus_file(shell.folder)
    changes = {**QUICK_RECIPE, "pretraining_weight": 1}
    with pytest.raises(HarmError):
        recipe_ray.purify(MODEL, aux, "out", changes=changes, scan=False)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "opened",
    [
        lambda: recipe_ray.purify("minilm", "T", "o", sandbox=True),
        lambda: recipe_ray.evaluate("minilm", "sst2", sandbox=True),
        lambda: recipe_ray.compare("minilm", "minilm", "sst2", sandbox=True),
        lambda: recipe_ray.scan("minilm", "T", sandbox=True),
    ],
)
def test_a_model_is_read_in_the_sandbox_if_that_is_asked_for(
    opened: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "T").write_text("a text\n" * 20)
    with pytest.raises(UserError, match="--sandbox: minilm is no folder"):
        opened()
