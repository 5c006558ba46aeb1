"""`recipe-ray scan` on folders of image PTMs: verdicts, exit codes, and what machines read."""

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from image_samples import labelled_parquet, tiny_vgg
from shell import Outcome, Shell, shell

from recipe_ray.api import scans
from recipe_ray.api.scan_report import RULES, Result, as_html, as_sarif, printed
from recipe_ray.base.errors import DataError, StoreError
from recipe_ray.base.printable import printable
from recipe_ray.detectors import calibration
from recipe_ray.detectors.calibration import settings_of
from recipe_ray.detectors.detector import DETECTORS
from recipe_ray.store.store import Store

__all__ = ["shell"]  # a fixture

QUICK = {"images": 8, "fresh": 8, "steps": 3, "restarts": 1, "widths": [0.25]}
DETECTOR = json.dumps({"name": "patches", **QUICK})


def saved(folder: Path, name: str = "vgg") -> str:
    tiny_vgg().save(folder / name)
    return str(folder / name)


def scan(shell: Shell, *words: object) -> Outcome:
    data = labelled_parquet(shell.folder)
    return shell("scan", *words, "--data", data, "--detector", DETECTOR, "--quiet")


def calibrate(patch: pytest.MonkeyPatch, bound: float) -> None:
    """Say what is normal for a VGG: every score up to `bound`."""
    detector = DETECTORS.parse(json.loads(DETECTOR))
    bounds = dict.fromkeys(("features", "collapse", "smallness"), bound)
    known = {"settings": settings_of(detector), "bounds": bounds, "clean": ["a", "b"]}
    patch.setattr(calibration, "_known", lambda: {"vgg": {"patches": known}})


def test_without_calibration_there_are_ranks_and_no_verdict(shell: Shell) -> None:
    done = scan(shell, saved(shell.folder))
    assert done.code == 3, done.err
    assert "not calibrated" in done.out
    assert "ranks only" in done.out
    assert "patches: " in done.out


def test_a_calibrated_model_is_clean_or_suspicious_by_what_is_normal(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(shell.folder)
    calibrate(monkeypatch, 1e9)
    quiet = scan(shell, model)
    assert (quiet.code, "nothing found" in quiet.out) == (0, True), quiet.err
    calibrate(monkeypatch, 1e-6)
    loud = scan(shell, model)
    assert (loud.code, "SUSPICIOUS" in loud.out) == (1, True)
    assert "normal up to 0" in loud.out


def test_a_clean_model_of_the_same_make_says_what_is_normal(shell: Shell) -> None:
    model = saved(shell.folder)
    done = scan(shell, model, "--reference", saved(shell.folder, "reference"), "--json")
    assert done.code == 0, done.err
    (found,) = json.loads(done.out)["models"]
    (detector,) = found["detectors"]
    assert detector["suspicion"] == pytest.approx(1 / 1.5, rel=1e-3)
    assert detector["normal_from"].startswith("model ")


def test_several_models_are_scanned_though_one_cannot_be_opened(shell: Shell) -> None:
    listed = shell.folder / "models.txt"
    (shell.folder / "bad").mkdir()
    (shell.folder / "bad" / "config.json").write_text("{")
    lines = [saved(shell.folder), "# a comment", str(shell.folder / "bad"), ""]
    listed.write_text("\n".join(lines))
    done = scan(shell, "--models", listed, "--json")
    assert done.code == 2
    first, second = json.loads(done.out)["models"]
    assert first["verdict"] == "not calibrated"
    assert second["verdict"] == "error"
    assert "config.json" in second["error"]


def test_a_folder_of_model_folders_stands_for_all_of_them(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        saved(shell.folder / "models", name)
    (shell.folder / "models" / "notes").mkdir()
    (shell.folder / "models" / "broken").mkdir()
    (shell.folder / "models" / "broken" / "config.json").write_text("{")
    calibrate(monkeypatch, 1e-6)
    done = scan(shell, "models", "--json")
    assert done.code == 1, done.err
    found = {one["model"]: one["verdict"] for one in json.loads(done.out)["models"]}
    models = {"models/one": "SUSPICIOUS", "models/two": "SUSPICIOUS", "models/broken": "error"}
    assert found == models
    (shell.folder / "empty").mkdir()
    assert "MODEL" in scan(shell, "empty").err or "empty" in scan(shell, "empty").err


def test_a_scan_that_is_in_the_store_is_not_done_again(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [saved(shell.folder), "--store", "kept", "--json"]
    first = scan(shell, *words)

    def refuse(*_: Any) -> Any:
        raise AssertionError("scanned again")

    monkeypatch.setattr(DETECTORS.get("patches"), "search", refuse)
    again = scan(shell, *words)
    assert again.out == first.out


def test_gc_leaves_scans_of_every_command(shell: Shell) -> None:
    model = saved(shell.folder)
    for seed in (0, 1):
        assert scan(shell, model, "--store", "kept", "--seed", seed).code == 3
    assert shell("store", "gc", "--store", "kept", "--yes").code == 0
    assert len(Store.open(shell.folder / "kept").committed()) == 2


class PanicException(BaseException):
    """Like a panic of a library in Rust: no Exception, and a class that cannot be imported."""


UNEXPECTED = [RuntimeError("torch"), MemoryError(), PanicException("index"), StoreError("gone")]


@pytest.mark.parametrize("place", ["opening", "scanning", "reading"])
@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda one: type(one).__name__)
def test_one_model_that_fails_in_any_way_holds_up_no_other(
    error: BaseException, place: str, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, name = {
        "opening": (scans.Asked, "stage"),
        "scanning": (DETECTORS.get("patches"), "search"),
        "reading": (scans.Scanner, "_result"),
    }[place]
    real, calls = getattr(where, name), []

    def fail_once(*words: Any, **options: Any) -> Any:
        calls.append(words)
        if len(calls) == 1:
            raise error
        return real(*words, **options)

    monkeypatch.setattr(where, name, fail_once)
    done = scan(shell, saved(shell.folder, "one"), saved(shell.folder, "two"), "--json")
    assert done.code == 2, done.err
    first, second = json.loads(done.out)["models"]
    assert first["verdict"] == "error"
    assert str(error) in first["error"]
    assert second["verdict"] == "not calibrated"


def test_a_reference_that_fails_is_said_to(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DETECTORS.get("patches"), "search", Mock(side_effect=DataError("no way")))
    said = scan(shell, saved(shell.folder), "--reference", saved(shell.folder, "reference"))
    assert (said.code, "--reference" in said.err, "no way" in said.err) == (2, True, True)


def test_files_for_machines_are_written(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    calibrate(monkeypatch, 1e-6)
    done = scan(shell, saved(shell.folder), "--sarif", "s.json", "--html", "p.html")
    assert done.code == 1, done.err
    log = json.loads((shell.folder / "s.json").read_text())
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    rules = {rule["id"] for rule in run["tool"]["driver"]["rules"]}
    assert rules == set(RULES)
    assert run["results"]
    for result in run["results"]:
        assert result["ruleId"] in rules
        (place,) = result["locations"]
        uri = place["physicalLocation"]["artifactLocation"]["uri"]
        assert uri.startswith("file://")
        assert uri.endswith(".safetensors")
    page = (shell.folder / "p.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "http" not in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vgg"], "--data: give unlabelled texts or images"),
        (["--data", "d"], "MODEL: give one or more models"),
        (["vgg", "--data", "d", "--detector", "patch"], "unknown detector 'patch'"),
        (
            ["vgg", "--data", "d", "--sarif", "no/s.json"],
            "--sarif no/s.json: the folder does not exist",
        ),
        (["vgg", "--data", "d", "--models", "none.txt"], "--models"),
        (["vgg", "--dta", "d"], "No such option"),
    ],
)
def test_wrong_use_has_a_code_of_its_own(shell: Shell, words: list[str], said: str) -> None:
    done = shell("scan", *words)
    assert done.code == 4
    assert said in done.err
    assert "Traceback" not in done.err


def flagged(shown: str) -> Result:
    suspect = {"shown": shown, "ids": [1], "group": 0, "scores": {"first": 30.0}}
    detector = {
        "detector": "vocabulary",
        "suspicious": True,
        "suspicion": 3.0,
        "normal": {"first": 10.0},
        "flagged": [suspect],
        "suspects": [suspect],
        "not_measured": {},
    }
    return Result("<b>model</b>", {"detectors": [detector]})


def test_words_from_outside_are_neither_markup_nor_terminal_codes() -> None:
    one = flagged("\x1b[31m<script>\u202e")
    page = as_html([one])
    assert "<script>" not in page
    assert "<b>model" not in page
    assert "\x1b" not in printed([one]) + json.dumps(as_sarif([one])) + page
    assert printable("\x1b[0m") == "\\x1b[0m"
    assert len(printable("a" * 100_000)) < 1000


def test_what_leads_to_one_vector_is_told_together() -> None:
    one = flagged("cf")
    assert one.record is not None
    twin = {**one.record["detectors"][0]["flagged"][0], "shown": "mn"}
    one.record["detectors"][0]["flagged"].append(twin)
    said = printed([one])
    assert "2 inputs, 1 vectors" in said
    assert "cf (first 30, normal up to 10), mn (first 30" in said
