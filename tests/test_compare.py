"""`recipe-ray compare`: two models fine-tuned in the same way, side by side."""

import json
from typing import Any

import pytest
import yaml
from samples import task_fields, tiny_folder
from shell import Outcome, Shell, shell

from recipe_ray.cli.evaluate import Side, lost_accuracy
from recipe_ray.stages.finetune import FinetuneStage
from recipe_ray.store.store import Store

__all__ = ["shell"]  # a fixture

MODEL = str(tiny_folder())


def compare(shell: Shell, *words: object) -> Outcome:
    task = yaml.safe_dump(task_fields(shell.folder), default_flow_style=True).strip()
    quick = ["--set", "steps=3", "--set", "precision=fp32", "--quiet"]
    return shell("compare", MODEL, MODEL, "--task", task, *quick, *words)


def test_a_model_does_nothing_otherwise_than_itself(shell: Shell) -> None:
    done = compare(shell, "--triggers", "cf,mn", "--seeds", "2", "--json", "--floor", MODEL)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["A"] == found["B"] == found["floor"]
    assert {"acc", "aasr", "masr", "asr cf", "asr mn"} <= found["A"].keys()
    assert found["A"]["acc"]["n"] == 2
    assert found["A"]["masr"]["mean"] >= found["A"]["aasr"]["mean"]


def test_what_changed_is_said_beside_both(shell: Shell) -> None:
    done = compare(shell, "--triggers", "cf")
    assert done.code == 0, done.err
    head, *rows = [line for line in done.out.splitlines() if "  " in line]
    assert head.split() == ["percent", "A", "B", "B", "-", "A"]
    assert [row.split("  ")[0].strip() for row in rows] == ["ACC", 'ASR of "cf"', "AASR", "MASR"]
    assert all(row.split()[-1] == "+0.0" for row in rows)
    assert all(len(line) <= 80 or MODEL in line for line in done.out.splitlines())


def test_a_fine_tuning_in_the_store_is_not_done_again(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compare(shell, "--store", "kept", "--json")

    def refuse(*_: Any) -> Any:
        raise AssertionError("fine-tuned again")

    monkeypatch.setattr(FinetuneStage, "run", refuse)
    assert compare(shell, "--store", "kept", "--json").out == first.out


@pytest.mark.parametrize("command", ["compare", "evaluate"])
def test_gc_leaves_what_commands_on_models_made(command: str, shell: Shell) -> None:
    task = yaml.safe_dump(task_fields(shell.folder), default_flow_style=True).strip()
    quick = ["--set", "steps=2", "--set", "precision=fp32", "--quiet", "--store", "kept"]
    for seeds in ("0", "1"):
        words = {"compare": [MODEL, MODEL, "--seeds", int(seeds) + 1]}
        words["evaluate"] = [MODEL, "--seed", seeds]
        assert shell(command, *words[command], "--task", task, *quick).code == 0
    store = Store.open(shell.folder / "kept")
    committed = store.committed()
    assert len(committed) == 2
    assert shell("store", "gc", "--store", "kept", "--yes").code == 0
    assert store.committed() == committed
    assert {name.partition("-")[0] for name in store.experiments()} == {command}
    assert set(store.results()["stage"].to_pylist()) == set(committed)


def test_lost_accuracy_is_warned_of() -> None:
    def side(acc: float) -> Side:
        return Side("m", [[{"metric": "acc", "value": acc, "trigger": None}]])

    assert "lost 2.5 points of ACC" in lost_accuracy(side(0.9), side(0.875))[0]
    assert lost_accuracy(side(0.9), side(0.89)) == lost_accuracy(side(0.9), side(0.95)) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["compare", MODEL, "minlm", "--task", "sst2"], "did you mean 'minilm'?"),
        (["compare", MODEL, MODEL, "--task", "sst22"], "did you mean 'sst2'?"),
        (["compare", MODEL, MODEL, "--task", "snippets", "--triggers", "a,,b"], "empty trigger"),
    ],
)
def test_what_was_typed_wrong_is_named(shell: Shell, words: list[str], said: str) -> None:
    assert said in shell.fails(*words)
