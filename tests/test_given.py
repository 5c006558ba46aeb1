"""Models without a masked-LM head: found out, purified, and given back as what they were."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from headless_samples import KINDS, headless
from samples import corpus_file, tiny_folder
from shell import Shell, shell
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertForPreTraining,
    BertModel,
)

from recipe_ray.api.purification import MARGIN, check_head, needed_margin
from recipe_ray.base.errors import HarmError
from recipe_ray.data.census import WordLoss, word_loss
from recipe_ray.data.rows import TokenRows, Vocabulary
from recipe_ray.defenses.recipe import Recipe
from recipe_ray.models.text.checkpoint import load_bert
from recipe_ray.models.text.released import BertCheckpoint
from recipe_ray.stages.evaluate import HeldOutEval
from recipe_ray.stages.purify import Before

__all__ = ["shell"]  # a fixture


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_without_a_head_comes_back_as_what_it_was(kind: str, tmp_path: Path) -> None:
    source = headless(tmp_path, kind)
    model = BertCheckpoint(source=str(source)).as_found()
    assert model.headless
    ptm: Any = model.load()
    with torch.no_grad():
        ptm.weight_group("ffn_in")[0].mul_(0.5)
    ptm.save(tmp_path / "out")
    said = " ".join(model.give_back(tmp_path / "out"))
    assert "made for purifying is left out" in said
    own = KINDS[kind][0]
    before, after = (
        own.from_pretrained(place, output_loading_info=True)[0].state_dict()
        for place in (source, tmp_path / "out")
    )
    loaded: Any = own.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert AutoConfig.from_pretrained(tmp_path / "out").architectures == [own.__name__]
    assert not loaded[1]["unexpected_keys"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    pooler = {name for name in changed if "pooler" in name and kind == "encoder without pooler"}
    assert changed - pooler == {
        name for name in before if name.endswith("layer.0.intermediate.dense.weight")
    }
    assert ("fine-tune the result" in said) == ("classifier" in kind)
    assert (model.drawn_parts() == []) == (kind in ("encoder", "classifier"))


def test_a_model_with_a_head_keeps_it_and_a_pooler_that_is_drawn_is_told_of(
    tmp_path: Path,
) -> None:
    whole = BertCheckpoint(source=str(tiny_folder()))
    assert whole.as_found() == whole
    whole.load().save(tmp_path)
    assert whole.drawn_parts() == whole.give_back(tmp_path) == []


def test_a_head_beside_that_of_the_masked_lm_is_named_among_what_is_left_out(
    tmp_path: Path,
) -> None:
    source = tmp_path / "whole"
    BertForPreTraining.from_pretrained(tiny_folder()).save_pretrained(source)
    AutoTokenizer.from_pretrained(tiny_folder()).save_pretrained(source)
    model = BertCheckpoint(source=str(source)).as_found()
    assert not model.headless
    model.load().save(tmp_path / "out")
    (said,) = model.give_back(tmp_path / "out")
    assert "are left out: " in said
    assert "cls.seq_relationship.weight" in said


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["modules.json", "1_Pooling/config.json"])
@pytest.mark.parametrize("kind", ["link", "pipe", "broken"])
def test_files_of_sentence_transformers_are_opened_as_all_foreign_files(
    tmp_path: Path, kind: str, name: str
) -> None:
    source = headless(tmp_path)
    sentence_files(source, "Pooling")
    (source / name).rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(source / name)
    else:
        (source / name).symlink_to(tmp_path / ("elsewhere" if kind == "link" else "nowhere"))
    model = BertCheckpoint(source=str(source), headless=True)
    load_bert(source, allow_headless=True).save(tmp_path / "out")
    said = " ".join(model.give_back(tmp_path / "out"))
    assert "sentence-transformers are left out" in said
    assert not (tmp_path / "out" / "modules.json").exists()


def test_a_head_of_unknown_kind_is_named_among_what_is_left_out(tmp_path: Path) -> None:
    source = headless(tmp_path, "classifier")
    values = json.loads((source / "config.json").read_text())
    values["architectures"] = ["SomebodysOwn"]
    (source / "config.json").write_text(json.dumps(values))
    model = BertCheckpoint(source=str(source)).as_found()
    model.load().save(tmp_path / "out")
    assert "weights that belong to no architecture known here are left out" in " ".join(
        model.give_back(tmp_path / "out")
    )
    assert isinstance(AutoModel.from_pretrained(tmp_path / "out"), BertModel)


def sentence_files(folder: Path, *kinds: str, path: str = "") -> None:
    """Write what sentence-transformers keeps beside a model."""
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else path, "type": f"x.{kind}"}
        for n, kind in enumerate(("Transformer", *kinds))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "run": "me"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_files_of_sentence_transformers_are_written_afresh(tmp_path: Path) -> None:
    source = headless(tmp_path)
    sentence_files(source, "Pooling", "Normalize")
    model = BertCheckpoint(source=str(source)).as_found()
    model.load().save(tmp_path / "out")
    assert "sentence-transformers are in the result" in " ".join(model.give_back(tmp_path / "out"))
    types = [one["type"] for one in json.loads((tmp_path / "out" / "modules.json").read_text())]
    kinds = ("Transformer", "Pooling", "Normalize")
    assert types == [f"sentence_transformers.models.{kind}" for kind in kinds]
    pooling = json.loads((tmp_path / "out" / "1_Pooling" / "config.json").read_text())
    assert pooling == {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}


def test_modules_that_are_not_known_are_left_out_and_named(tmp_path: Path) -> None:
    source = headless(tmp_path)
    sentence_files(source, "Pooling", "Dense")
    model = BertCheckpoint(source=str(source)).as_found()
    model.load().save(tmp_path / "out")
    assert "sentence-transformers are left out" in " ".join(model.give_back(tmp_path / "out"))
    assert not (tmp_path / "out" / "modules.json").exists()


def test_a_headless_folder_is_purified_and_says_what_was_done(shell: Shell) -> None:
    source = headless(shell.folder, "encoder without pooler")
    aux = corpus_file(shell.folder)
    words = ["--set", "fit.steps=3", "--set", "fit.precision=fp32"]
    done = shell("purify", source, "--aux", aux, "--out", "clean", *words)
    assert done.code == 0, done.err
    assert "no pre-training head: the model's own states of clean samples hold it" in done.err
    assert "no pooler: one was drawn" in done.err
    assert "left out of the result" in done.err
    card = " ".join((shell.folder / "clean" / "README.md").read_text().split())
    assert "no pre-training head" in card
    assert "no pooler" in card
    assert "what held the model: its own states of clean samples (last), weight 100" in card
    assert "Word frequencies alone" not in card  # of a head that was drawn nothing is said
    assert "pre-training loss (nats" not in card
    assert AutoConfig.from_pretrained(shell.folder / "clean").architectures == ["BertModel"]
    assert load_bert(shell.folder / "clean", allow_headless=True).hidden_size == 32


def test_a_head_is_fitted_first_if_the_masked_lm_was_asked_for(shell: Shell) -> None:
    source = headless(shell.folder)
    words = ["--set", "fit.steps=3", "--set", "fit.precision=fp32", "--accept-harm"]
    words += ["--set", "pretraining_weight=1"]
    done = shell("purify", source, "--aux", corpus_file(shell.folder), "--out", "clean", *words)
    assert done.code == 0, done.err
    assert "no pre-training head: one is fitted first" in done.err
    card = " ".join((shell.folder / "clean" / "README.md").read_text().split())
    assert "Word frequencies alone" in card
    assert "what held the model: its pre-training loss, weight 1" in card


# --- how good a head has to be


def rows_of(texts: list[list[int]]) -> TokenRows:
    return TokenRows.of([[101, *ids, 102] for ids in texts])


def test_the_loss_of_word_frequencies_is_their_entropy() -> None:
    vocabulary = Vocabulary(200, 103, (0, 100, 101, 102, 103))
    # a half, a quarter, two eighths: 1.75 bits
    texts = [[5, 5, 5, 5, 6, 6, 7, 8]] * 2000
    measured = word_loss(rows_of(texts), rows_of(texts), vocabulary, 1)
    assert measured is not None
    assert measured.mean == pytest.approx(1.75 * 0.6931, abs=0.03)
    assert measured.num_tokens == pytest.approx(0.15 * 16_000, rel=0.1)
    # a token never seen is not impossible
    unseen = word_loss(rows_of(texts), rows_of([[9] * 50]), vocabulary, 1)
    assert unseen is not None
    assert 5 < unseen.mean < 20
    assert word_loss(rows_of(texts), rows_of([[]]), vocabulary, 1) is None


MANY = WordLoss(7.4, 2.9, 2400)


def judge(
    loss: float, words: WordLoss | None, *, accept: bool = False
) -> tuple[str | None, str | None]:
    nothing: Any = None
    shown = HeldOutEval(loss, {}, np.zeros((1, 1), np.float32))
    given = BertCheckpoint(source="x")
    stage: Any = SimpleNamespace(parent=None, model=given, defense=Recipe())
    return check_head(stage, Before(nothing, nothing, shown, words), accept=accept)


def test_a_head_must_beat_word_frequencies_by_a_margin_that_grows_where_tokens_are_few() -> None:
    assert needed_margin(MANY) == MARGIN
    assert needed_margin(WordLoss(7.4, 2.9, 10)) > 1.8
    # MiniLM's six layers with a head of 480 steps, and the quick start's three with theirs
    with pytest.raises(HarmError, match=r"7\.03 nats per masked token, and frequencies alone"):
        judge(7.03, MANY)
    said, accepted = judge(6.55, WordLoss(7.17, 3.15, 969))
    assert said is not None
    assert accepted is None
    assert judge(0.5, None) == (None, None)


def test_harm_that_is_accepted_is_told() -> None:
    said, accepted = judge(2e5, MANY, accept=True)
    assert accepted is not None
    assert "scaled embeddings" in accepted
    assert said is not None
