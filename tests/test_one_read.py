"""`purify` reads its corpus once and loads its model once, whatever it needs them for."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headless_samples import headless
from samples import SENTENCES, corpus_file, tiny_folder
from scan_samples import looking_with_little, texts
from shell import Shell, shell

from recipe_ray.data.corpora import OwnText
from recipe_ray.data.sources import FileSource, Locations
from recipe_ray.models.text.released import BertCheckpoint

__all__ = ["shell"]  # a fixture

WORDS = ("--set", "fit.steps=3", "--set", "fit.precision=fp32", "--accept-harm", "--quiet")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return how often a source was read to its end, and a model loaded from its files."""
    found: Counter[str] = Counter()
    batches, load, reload = FileSource.batches, BertCheckpoint.load, BertCheckpoint.reload

    def read(source: FileSource) -> Iterator[Any]:
        yield from batches(source)
        found["passes"] += 1

    def loaded(model: BertCheckpoint) -> Any:
        found["loads"] += 1
        return load(model)

    def reloaded(model: BertCheckpoint, folder: Path) -> Any:
        found["reloads"] += 1
        return reload(model, folder)

    monkeypatch.setattr(FileSource, "batches", read)
    monkeypatch.setattr(BertCheckpoint, "load", loaded)
    monkeypatch.setattr(BertCheckpoint, "reload", reloaded)
    return found


def test_a_model_is_purified_with_one_read_and_one_load(shell: Shell, done: Counter[str]) -> None:
    aux = corpus_file(shell.folder)
    ended = shell("purify", tiny_folder(), "--aux", aux, "--out", "clean", *WORDS)
    assert ended.code == 0, ended.err
    assert done == {"passes": 1, "loads": 1}


def test_a_model_whose_head_is_fitted_first_is_loaded_once_and_the_fitted_one_once(
    shell: Shell, done: Counter[str]
) -> None:
    source, aux = headless(shell.folder), corpus_file(shell.folder)
    asked = ("--set", "pretraining_weight=1")
    ended = shell("purify", source, "--aux", aux, "--out", "clean", *WORDS, *asked)
    assert ended.code == 0, ended.err
    assert done == {"passes": 1, "loads": 1, "reloads": 1}


def test_a_model_without_a_head_that_its_states_hold_is_loaded_once(
    shell: Shell, done: Counter[str]
) -> None:
    source, aux = headless(shell.folder), corpus_file(shell.folder)
    ended = shell("purify", source, "--aux", aux, "--out", "clean", *WORDS)
    assert ended.code == 0, ended.err
    assert done == {"passes": 1, "loads": 1}


def test_a_scan_before_loads_nothing_and_one_after_opens_what_is_given_away(
    shell: Shell, done: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looking_with_little(monkeypatch)
    aux = texts(shell.folder)
    ended = shell("purify", tiny_folder(), "--aux", aux, "--out", "clean", *WORDS)
    assert ended.code == 0, ended.err
    assert "scan" in ended.out
    assert done == {"passes": 1, "loads": 1, "reloads": 1}


@pytest.mark.parametrize(
    ("size", "most_held", "passes"),
    [(100, 100, 1), (100, 10, 2), (20, 100, 2), (48, 48, 1), (None, 0, 1)],
)
def test_texts_are_read_twice_only_if_too_many_to_be_held_or_to_be_taken(
    size: int | None,
    most_held: int,
    passes: int,
    tmp_path: Path,
    done: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = OwnText(path=str(corpus_file(tmp_path)), size=size)
    monkeypatch.setattr(OwnText, "most_held", most_held)
    found = list(corpus.samples(Locations(None, tmp_path)))
    assert done["passes"] == passes
    assert len(found) == min(size or 48, 48)
    if len(found) == 48:
        assert found == SENTENCES * 2
