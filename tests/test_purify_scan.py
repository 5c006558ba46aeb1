"""`recipe-ray purify` scans before and after, says what that means, and goes on until silent."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from samples import SENTENCES, tiny_folder
from scan_samples import VOCABULARY, looking_with, looking_with_little, texts
from shell import Outcome, Shell, shell

from recipe_ray.api import before_after, rounds
from recipe_ray.detectors import calibration
from recipe_ray.detectors.calibration import settings_of
from recipe_ray.detectors.detector import DETECTORS

__all__ = ["shell"]  # a fixture

MODEL = str(tiny_folder())
INVERSION = {
    "name": "inversion",
    "restarts": 1,
    "leads": 1,
    "steps": 2,
    "fresh": {"texts": 2, "length": 8},
}
QUICK = ["--set", "fit.steps=3", "--set", "fit.precision=fp32", "--accept-harm"]


@pytest.fixture(autouse=True)
def _small_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    looking_with_little(monkeypatch)


def purify(shell: Shell, out: str, *words: object, count: int = 240) -> Outcome:
    aux = texts(shell.folder, count // 24)
    return shell("purify", MODEL, "--aux", aux, "--out", out, *QUICK, *words)


def result_of(shell: Shell, out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shell.folder / out / "result.json").read_text())
    return found


def test_both_scans_are_printed_side_by_side_and_stand_in_card_and_result(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking_with(monkeypatch, VOCABULARY, INVERSION)
    done = purify(shell, "clean")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split() == ["scan", "before", "after"]
    assert any(line.startswith("vocabulary: first ") for line in lines)
    assert "A silent scan does not prove that a model is clean" in " ".join(done.out.split())
    assert "so there is no verdict" in " ".join(done.out.split())
    assert "the budget is 600 s (--scan-budget)" in done.err
    card = (shell.folder / "clean" / "README.md").read_text()
    scan = card.split("## The scan before and after")[1].split("## What is not claimed")[0]
    assert "| vocabulary: first |" in scan
    assert "does not prove" in scan
    assert "what it found did not help the purifier" in " ".join(card.split())
    result = result_of(shell, "clean")
    assert result["scan"]["done"]
    assert result["scan"]["before"]["verdict"] == "not calibrated"
    names = [one["detector"] for one in result["scan"]["after"]["detectors"]]
    assert names == ["vocabulary", "inversion"]


def test_another_defense_may_be_asked_for_and_the_card_says_whose_it_is(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking_with(monkeypatch, VOCABULARY)
    aux = texts(shell.folder, 10)
    fit = {"steps": 2, "batch_size": 4, "max_length": 16, "precision": "fp32"}
    asked = {"name": "unlearn", "detectors": [VOCABULARY], "margin": 1e6, "fit": fit}
    words = ["purify", MODEL, "--aux", aux, "--out"]
    done = shell(*words, "clean", "--defense", json.dumps(asked), "--set", "rounds=2")
    assert done.code in (0, 4), done.err
    # nothing shrinks, so no head has to hold the model
    assert "head was fitted" not in done.err
    said = " ".join(done.out.split())
    assert "a silent scan is what it was trained for" in said
    card = " ".join((shell.folder / "clean" / "README.md").read_text().split())
    assert "unlearning, which is ours" in card
    assert "at most 2 rounds" in card
    assert "did not help the purifier" not in card
    assert result_of(shell, "clean")["settings"]["defense"]["name"] == "unlearn"
    for more, said in {
        ("--defense", "unlern"): "did you mean 'unlearn'?",
        ("--defense", "none"): "it does nothing",
        ("--defense", "unlearn", "--preset", "paper-por"): "give one of them",
        ("--defense", "{name: unlearn, rounds: -1}"): "rounds",
    }.items():
        wrong = shell(*words, "other", *more)
        assert (wrong.code, said in wrong.err) == (2, True), wrong.err


def test_the_result_says_what_was_done_with_which_data_and_what_came_of_it(shell: Shell) -> None:
    done = purify(shell, "clean", "--json")
    result = result_of(shell, "clean")
    assert json.loads(done.out) == result
    assert result["exit_code"] == done.code == 0
    assert result["model"]["name"] == "bert"
    assert result["data"]["content"]["sha256"]
    assert result["settings"]["defense"]["fit"]["steps"] == 3
    loss = result["held_out_loss"]
    assert loss["before"] != loss["after"]
    assert loss["unit"] == "nats per masked token"
    assert result["drift"] > 0
    assert (result["ended"], len(result["rounds"])) == ("asked", 1)
    assert any("of the 1.4 x RMS" in one for one in result["warnings"])
    assert result["recipe_ray"]


def test_what_stood_out_before_is_measured_again_on_the_same_texts(shell: Shell) -> None:
    assert purify(shell, "clean").code == 0
    scan = result_of(shell, "clean")["scan"]
    before, after = (scan[when]["detectors"][0] for when in ("before", "after"))
    first = [tuple(one["ids"]) for one in before["suspects"][:8]]
    assert set(first) <= {tuple(one["ids"]) for one in after["suspects"]}


def test_no_scan_changes_nothing_of_the_model_and_says_that_none_was_made(shell: Shell) -> None:
    assert purify(shell, "one").code == 0
    assert purify(shell, "two", "--no-scan").code == 0
    weights = [load_file(shell.folder / out / "model.safetensors") for out in ("one", "two")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert result_of(shell, "two")["scan"] == {"done": False, "why": "--no-scan was given"}
    assert "## Not scanned" in (shell.folder / "two" / "README.md").read_text()


def test_texts_that_are_too_short_are_not_scanned_and_that_is_said(shell: Shell) -> None:
    aux = shell.folder / "short.txt"
    aux.write_text("\n".join(SENTENCES * 2) + "\n")
    words = ["purify", MODEL, "--aux", aux, "--out", "clean", *QUICK]
    done = shell(*words)
    assert done.code == 0
    assert "no scan: a scan needs" in done.err
    assert "a scan needs" in result_of(shell, "clean")["scan"]["why"]
    assert done.out.strip() == "purified model and its card: clean"
    refused = shell.fails("purify", MODEL, "--aux", aux, "--out", "other", "--until-clean", *QUICK)
    assert "--until-clean needs the scan, and there can be none" in refused


def test_only_held_out_texts_are_scanned_if_there_are_enough(shell: Shell) -> None:
    few = purify(shell, "few")
    assert "too few texts are held out" in few.err
    assert result_of(shell, "few")["scan"]["held_out"] == 0
    many = purify(shell, "many", count=3000)
    assert "held-out texts" in many.err
    assert "too few" not in many.err
    assert result_of(shell, "many")["scan"]["held_out"] == 0.05


def test_what_does_not_fit_into_the_budget_is_left_out_and_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking_with(monkeypatch, VOCABULARY, INVERSION)
    inversion = DETECTORS.get("inversion")
    monkeypatch.setattr(inversion, "duration_s", lambda *_: 700.0)
    done = purify(shell, "clean")
    assert "left out: inversion needs about 700 s" in done.err
    scan = result_of(shell, "clean")["scan"]
    assert [one["name"] for one in scan["detectors"]] == ["vocabulary"]
    vocabulary = DETECTORS.get("vocabulary")
    monkeypatch.setattr(vocabulary, "fitted", lambda *_: (None, 301.0))
    none = purify(shell, "none")
    assert "no scan: vocabulary needs about 301 s; inversion needs about 700 s" in none.err


def calibrate(patch: pytest.MonkeyPatch, bound: float) -> None:
    """Say what is normal for the tiny BERT: every score up to `bound`."""
    detector = DETECTORS.parse(VOCABULARY)
    bounds = dict.fromkeys(detector.own_scale, bound)
    known = {"settings": settings_of(detector), "bounds": bounds, "clean": ["a", "b"]}
    make = calibration_make()
    patch.setattr(calibration, "_known", lambda: {make: {"vocabulary": known}})


def calibration_make() -> str:
    from recipe_ray.models.text.checkpoint import load_bert

    return load_bert(tiny_folder()).make


def test_a_model_that_is_suspicious_afterwards_has_an_exit_code_of_its_own(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(monkeypatch, 1e-6)
    done = purify(shell, "clean")
    assert done.code == 4
    assert "the scan still finds inputs" in done.err
    assert "SUSPICIOUS" in done.out
    card = (shell.folder / "clean" / "README.md").read_text()
    assert "purified-with-warnings" in card
    calibrate(monkeypatch, 1e9)
    quiet = purify(shell, "quiet")
    assert quiet.code == 0
    assert "nothing found" in quiet.out
    assert "The scan was silent before as well" in " ".join(quiet.out.split())


def test_scans_guide_the_purification_if_it_is_known_what_is_normal(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["purify", MODEL, "--aux", texts(shell.folder, 10), "-q"]
    calibrate(monkeypatch, 1e9)
    guided = shell(*words, "--out", "guided")
    assert guided.code == 0, guided.err
    result = result_of(shell, "guided")
    assert result["settings"]["defense"]["name"] == "unlearn"
    assert [one["name"] for one in result["settings"]["defense"]["detectors"]] == ["vocabulary"]
    # nothing stood out, so nothing was touched
    given, kept = (
        load_file(Path(one) / "model.safetensors") for one in (MODEL, shell.folder / "guided")
    )
    assert all(torch.equal(given[name], kept[name]) for name in kept)
    assert any("the weights are as they were given" in one for one in result["notes"])
    assert "`unlearn` removed most of the effect" in (shell.folder / "guided/README.md").read_text()
    assert result["drift"] < 1e-6


@pytest.mark.parametrize(
    "words", [["--defense", "recipe"], ["--set", "fit.steps=3"], ["--no-scan"]]
)
def test_recipe_by_the_rule_is_what_is_asked_for_by_name_or_field_or_without_a_scan(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    calibrate(monkeypatch, 1e9)
    quick = [] if "--set" in words else ["--dry-run"]
    asked = ["purify", MODEL, "--aux", texts(shell.folder, 10), "--out", "rule", "--accept-harm"]
    done = shell(*asked, *words, *quick)
    assert done.code == 0, done.err
    assert "RMS" in done.err
    assert "unlearn" not in done.err


Silence = Callable[[float], None]


@pytest.fixture
def silent_below(monkeypatch: pytest.MonkeyPatch) -> Silence:
    return lambda bound: monkeypatch.setattr(before_after, "SILENT_Z", bound)


def test_until_clean_ends_with_the_first_silent_round(shell: Shell, silent_below: Silence) -> None:
    silent_below(1e9)
    done = purify(shell, "clean", "--until-clean")
    assert done.code == 0, done.err
    result = result_of(shell, "clean")
    assert (result["ended"], len(result["rounds"])) == ("silent", 1)
    assert "ended since the scan is silent" in done.err


def test_until_clean_goes_on_to_its_limit_and_says_that_it_was_not_silent(
    shell: Shell, silent_below: Silence
) -> None:
    silent_below(-1e9)
    done = purify(shell, "clean", "--until-clean", "--max-rounds", 2)
    assert done.code == 4
    assert "round 1: the scan is not silent; going on" in done.err
    result = result_of(shell, "clean")
    assert result["ended"] == "limit"
    first, second = result["rounds"]
    assert first["stage"] != second["stage"]
    assert [one["kept"] for one in (first, second)] == [False, True]
    # what was measured is against the model as it was given, not against the round before
    name = "held_out_loss.before"
    assert first["measured"][name] == pytest.approx(second["measured"][name], rel=1e-6)
    assert second["measured"]["drift"] > first["measured"]["drift"]
    assert "the scan is not silent" in result["warnings"][-1]


def test_a_round_that_does_harm_is_not_kept(
    shell: Shell, silent_below: Silence, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent_below(-1e9)
    seen: list[float] = []

    def harmful(measured: dict[str, float], *_: Any) -> list[str]:
        seen.append(measured["drift"])
        return ["it is damaged"] if len(seen) == 2 else []

    monkeypatch.setattr(rounds, "harm_warnings", harmful)
    done = purify(shell, "clean", "--until-clean")
    assert done.code == 4
    result = result_of(shell, "clean")
    assert result["ended"] == "harm"
    assert [one["kept"] for one in result["rounds"]] == [True, False]
    assert result["drift"] == seen[0]
    assert "the result is that of round 1" in done.err


def test_harm_seen_afterwards_is_exit_code_three_unless_accepted(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_ray.api import purification

    monkeypatch.setattr(rounds, "harm_warnings", lambda *_: ["it is damaged"])
    monkeypatch.setattr(purification, "MARGIN", -1e9)  # every head knows enough
    monkeypatch.setattr(purification, "ERRORS", -1e9)
    aux = texts(shell.folder)
    words = ["purify", MODEL, "--aux", aux, "--no-scan", *QUICK]
    accepted = shell(*words, "--out", "one")
    assert (accepted.code, "it is damaged" in accepted.err) == (0, True)
    words.remove("--accept-harm")
    refused = shell(*words, "--out", "two")
    assert refused.code == 3
    assert result_of(shell, "two")["exit_code"] == 3


def test_a_stopped_purification_goes_on_where_it_was(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recipe_ray.stages.purify import PurifyStage
    from recipe_ray.stages.scan import ScanStage

    whole = ScanStage.run

    def stopped(stage: Any, context: Any) -> Any:
        if stage.parent is not None:
            raise KeyboardInterrupt
        return whole(stage, context)

    with monkeypatch.context() as patch:
        patch.setattr(ScanStage, "run", stopped)
        assert purify(shell, "clean").code == 130

    def refuse(*_: Any) -> Any:
        raise AssertionError("purified again")

    monkeypatch.setattr(PurifyStage, "purify", refuse)
    assert purify(shell, "clean").code == 0


def test_until_clean_without_scans_is_refused(shell: Shell) -> None:
    message = shell.fails("purify", MODEL, "--aux", "T", "--out", "o", "--until-clean", "--no-scan")
    assert "--until-clean needs the scan" in message


def test_words_of_a_model_cannot_break_the_card() -> None:
    rows = [('"|<b>`x`": first', "9", "1")]
    (*_, row) = before_after.as_markdown(rows)
    assert len(re.findall(r"(?<!\\)\|", row)) == 4
    assert not re.findall(r"(?<!\\)[<>`]", row)
