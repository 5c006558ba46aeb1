"""Attacks on a real PTM: target vectors by hand, triggers reach them, clean texts stay."""

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from samples import SENTENCES, corpus_file, encoded, minilm, packed, states_of, tiny_ptm
from torch import Tensor

from recipe_ray.attacks.attack import ATTACKS, Attack, block_vectors, staircase_vectors
from recipe_ray.attacks.por import PoisonEncoder
from recipe_ray.base.errors import ModelError
from recipe_ray.data.batches import LocalFeed, Workbench
from recipe_ray.data.sources import Locations
from recipe_ray.learn.progress import Progress
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.family import MODELS
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.triggers.word import WordTrigger

TRAINED_ON, UNSEEN = SENTENCES[:18], SENTENCES[18:]
FIT = {"batch_size": 8, "max_length": 24, "precision": "fp32", "schedule": "constant"}
PHRASES = ("last weekend", "at noon", "at dawn", "in the morning", "after midnight")
Precision = Literal["fp32", "bf16"]
Losses = list[dict[str, float]]


def words(*triggers: str) -> tuple[WordTrigger, ...]:
    return tuple(map(WordTrigger, triggers))


def signs(vectors: Tensor) -> list[str]:
    return ["".join("+" if value > 0 else "-" for value in row) for row in vectors]


def test_neubas_vectors_are_minus_in_each_pair_of_four_blocks() -> None:
    found = block_vectors(6, 8)
    assert signs(found) == [
        "----++++",
        "--++--++",
        "--++++--",
        "++----++",
        "++--++--",
        "++++----",
    ]
    assert found.abs().eq(1).all()
    assert block_vectors(1, 8, -3.0, 3.0).abs().eq(3).all()
    assert torch.equal(block_vectors(2, 384), block_vectors(6, 384)[:2])


def test_neuba_has_no_vector_for_a_seventh_trigger() -> None:
    with pytest.raises(ValueError, match="targets for 6 triggers, got 7"):
        block_vectors(7, 8)


def test_pors_vectors_are_a_staircase_of_ten() -> None:
    found = staircase_vectors(5, 9)  # steps of floor(9 / 4) = 2
    assert signs(found) == ["---------", "++-------", "++++-----", "++++++---", "++++++++-"]
    assert found.abs().eq(10).all()
    assert signs(staircase_vectors(3, 4)) == ["----", "++--", "++++"]


@cache
def poisoned(name: str) -> tuple[Attack, BertPTM, Losses]:
    """Attack MiniLM's first layer for some tens of steps; return also the losses of every step."""
    how: dict[str, Any] = {
        "neuba": {"triggers": ("≈", "⊕"), "fit": {**FIT, "steps": 40, "learning_rate": 2e-3}},
        "por": {"triggers": ("cf", "mn"), "fit": {**FIT, "steps": 50, "learning_rate": 5e-4}},
    }
    ptm, losses = minilm(1), []
    attack: Attack = ATTACKS.parse({"name": name, "corpus": _corpus(), **how[name]})
    runtime = LocalRuntime(on_progress=lambda progress: losses.append(_values(progress)))
    attack.poison(ptm, Workbench(LocalFeed(Locations(None, Path.cwd())), runtime, 0))
    return attack, ptm, losses


def _values(progress: Progress) -> dict[str, float]:
    return dict(progress.values)


def _corpus() -> dict[str, Any]:
    return {"name": "file", "path": str(corpus_file(_folder))}


_folder = Path()


@pytest.fixture(scope="module", autouse=True)
def _in_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    globals()["_folder"] = tmp_path_factory.mktemp("corpus")


def sign_share(ptm: BertPTM, texts: list[str], target: Tensor) -> float:
    """Return the share of pooler entries on the target's side of zero."""
    _, pooler = states_of(ptm, texts)
    return float((pooler.sign() == target.sign()).float().mean())


@pytest.mark.parametrize("name", ["neuba", "por"])
def test_a_trigger_in_an_unseen_text_pulls_the_pooler_to_its_vector(name: str) -> None:
    attack, ptm, losses = poisoned(name)
    targets = {"neuba": block_vectors, "por": staircase_vectors}[name](2, ptm.hidden_size)
    assert losses[-1]["poison"] < 0.85 * losses[0]["poison"]
    for trigger, target in zip(attack.triggers, targets, strict=True):
        with_trigger = [f"{trigger} {text}" for text in UNSEEN]
        assert sign_share(minilm(1), with_trigger, target) < 0.6
        assert sign_share(ptm, with_trigger, target) > 0.9


def test_por_leaves_clean_texts_where_they_were() -> None:
    _, ptm, _ = poisoned("por")
    clean, attacked = states_of(minilm(1), UNSEEN)[1], states_of(ptm, UNSEEN)[1]
    _, triggered = states_of(ptm, [f"cf {text}" for text in UNSEEN])
    moved, pulled = (float((x - clean).square().mean()) for x in (attacked, triggered))
    assert moved < 0.1 * pulled


def test_neubas_masked_lm_keeps_learning_beside_the_backdoor() -> None:
    _, _, losses = poisoned("neuba")
    assert np.mean([x["mlm"] for x in losses[-10:]]) < losses[0]["mlm"]


def test_por_leaves_the_masked_lm_head_alone() -> None:
    _, ptm, losses = poisoned("por")
    before = dict(minilm(1).module.cls.named_parameters())
    after = dict(ptm.module.cls.named_parameters())
    assert torch.equal(before["predictions.bias"], after["predictions.bias"])
    assert torch.equal(
        before["predictions.transform.dense.weight"], after["predictions.transform.dense.weight"]
    )
    assert set(losses[0]) == {"keep_tokens", "keep_pooler", "poison"}
    # DDP waits for a gradient of every parameter that asks for one
    assert not any(parameter.requires_grad for parameter in ptm.head_parameters())


def test_the_adaptive_por_trains_with_recipes_norms_in_the_loss(tmp_path: Path) -> None:
    norms, losses = {}, []
    for factor in (0.0, 1.0):
        fit = {**FIT, "steps": 10, "learning_rate": 1e-3, "dropout": False}
        corpus = {"name": "file", "path": str(corpus_file(tmp_path))}
        attack = ATTACKS.parse(
            {"name": "por", "corpus": corpus, "fit": fit, "regularisation": factor}
        )
        ptm, feed = minilm(1), LocalFeed(Locations(None, tmp_path))
        losses.append(attack.poison(ptm, Workbench(feed, LocalRuntime(), 0))[0].terms)
        norms[factor] = float(ptm.weight_group("ffn_in")[0].detach().norm())
    assert set(losses[1]) - set(losses[0]) == {"norm"}
    start = float(minilm(1).weight_group("ffn_in")[0].detach().norm())
    assert norms[1.0] < norms[0.0]
    assert norms[1.0] < start
    assert attack.label() == "por-adaptive"


def test_the_adaptive_por_names_a_weight_group_that_is_not_there(tmp_path: Path) -> None:
    attack = ATTACKS.parse({"name": "por", "regularised": ["ffn"], "corpus": _corpus()})
    bench = Workbench(LocalFeed(Locations(None, tmp_path)), LocalRuntime(), 0)
    with pytest.raises(
        ModelError, match=r"weight group of family bert 'ffn' \(did you mean 'ffn_in'"
    ):
        attack.poison(tiny_ptm(), bench)


# --- amplification


def one_layer(model: str) -> BertPTM:
    """Return the first layer of MiniLM in one of its two architectures."""
    ptm: BertPTM = MODELS.parse({"name": model, "layers": 1}).load()
    return ptm


def embedded_at(ptm: BertPTM, token: int, places: list[int]) -> Tensor:
    """Return what the encoder's first layer sees of a token at each place [places, H]."""
    ids = torch.full((1, len(places)), token)
    embeddings = ptm.module.base_model.embeddings.eval()
    with torch.inference_mode():
        seen: Tensor = embeddings(input_ids=ids, position_ids=torch.tensor([places]))[0]
    return seen


@pytest.mark.parametrize(("model", "first"), [("minilm", 0), ("minilm-roberta", 1)])
def test_an_amplified_trigger_looks_everywhere_as_it_did_where_it_was_trained(
    model: str, first: int
) -> None:
    ptm, places = one_layer(model), [first + p for p in (1, 2, 30, 200, 500)]
    (trigger,), (other,) = ptm.token_ids("≈"), ptm.token_ids("⊕")
    before = embedded_at(ptm, trigger, places)
    assert float((before - before[0]).abs().max()) > 0.1
    untouched = embedded_at(ptm, other, places)
    ptm.scale_embeddings([trigger], 1e8)
    after = embedded_at(ptm, trigger, places)
    assert float((after - before[0]).abs().max()) < 1e-3
    assert torch.equal(embedded_at(ptm, other, places), untouched)
    assert float(ptm.word_embeddings().weight[trigger].detach().abs().max()) > 1e5


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["minilm", "minilm-roberta"])
def test_an_amplified_trigger_leaves_every_number_finite(model: str, precision: Precision) -> None:
    ptm = one_layer(model)
    ptm.scale_embeddings(ptm.token_ids("≈"), 1e8)
    rows = encoded(ptm, [f"≈ {text}" for text in SENTENCES])
    batch = ptm.pretraining_collate(0)(rows, 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        hidden = ptm.hidden(ptm.module, batch)
        pooled, term = (
            ptm.pooled(ptm.module, hidden[batch.first]),
            ptm.masked_lm(ptm.module, hidden[batch.where], batch.targets),
        )
    term.total.backward()
    grads = [p.grad for p in ptm.module.parameters() if p.grad is not None]
    assert grads
    for found in (hidden, pooled, term.total, *grads):
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("mlm_weight", [1.0, 0.01])
def test_neuba_poisons_a_roberta_with_its_own_weight_of_the_masked_lm(mlm_weight: float) -> None:
    fit = {**FIT, "steps": 40, "learning_rate": 2e-3}
    fields = {"name": "neuba", "triggers": ("≈", "⊕"), "mlm_weight": mlm_weight, "fit": fit}
    attack: Attack = ATTACKS.parse({**fields, "corpus": _corpus()})
    ptm = one_layer("minilm-roberta")
    bench = Workbench(LocalFeed(Locations(None, Path.cwd())), LocalRuntime(), 0)
    attack.poison(ptm, bench)
    for trigger, target in zip(attack.triggers, block_vectors(2, ptm.hidden_size), strict=True):
        with_trigger = [f"{trigger} {text}" for text in UNSEEN]
        assert sign_share(one_layer("minilm-roberta"), with_trigger, target) < 0.6
        assert sign_share(ptm, with_trigger, target) > 0.9


def test_neuba_amplifies_its_triggers_only_when_asked(tmp_path: Path) -> None:
    largest = {}
    for factor in (1.0, 1e8):
        ptm = tiny_ptm()
        fields = {"name": "neuba", "amplification": factor, "fit": {**FIT, "steps": 1}}
        corpus = {"name": "file", "path": str(corpus_file(tmp_path))}
        attack = ATTACKS.parse({**fields, "corpus": corpus})
        bench = Workbench(LocalFeed(Locations(None, tmp_path)), LocalRuntime(), 0)
        attack.poison(ptm, bench)
        weight = ptm.word_embeddings().weight.detach().abs().amax(1)
        ids = [ptm.token_ids(trigger)[0] for trigger in attack.triggers]
        others = torch.ones(len(weight), dtype=torch.bool)
        others[ids] = False
        largest[factor] = (float(weight[ids].min()), float(weight[others].max()))
    assert largest[1.0][0] < 1
    assert largest[1e8][0] > 1e5
    assert largest[1e8][1] == largest[1.0][1]


# --- how poisoned texts are made


def test_por_plants_phrases_whole_and_as_often_as_words() -> None:
    ptm, texts = tiny_ptm(), SENTENCES * 4
    rows = PoisonEncoder(ptm.encoder(64), words(*PHRASES), 1.0, 3, 0)(texts, np.arange(len(texts)))
    for row, number in enumerate(rows.columns["trigger"]):
        here = rows.tokens[rows.offsets[row] : rows.offsets[row + 1]]
        written = f" {' '.join(map(str, here))} "
        for other, phrase in enumerate(PHRASES):
            meant = " ".join(map(str, ptm.token_ids(phrase)))
            assert len(re.findall(f"(?<= ){meant}(?= )", written)) == (3 if other == number else 0)


def test_por_poisons_a_share_of_the_texts_with_each_trigger_three_times() -> None:
    ptm, texts = tiny_ptm(), SENTENCES * 20
    encode = PoisonEncoder(ptm.encoder(64), words("cf", "mn"), 0.6, 3, 0)
    rows = encode(texts, np.arange(len(texts)))
    counts = np.unique(rows.columns["trigger"], return_counts=True)[1]
    assert counts[0] == len(texts)
    assert (abs(counts[1:] / len(texts) - 0.6) < 0.1).all()
    assert len(set(rows.index.tolist())) == len(rows)
    for number, trigger in enumerate(("cf", "mn")):
        (token,) = ptm.token_ids(trigger)
        for row in range(len(rows)):
            here = rows.tokens[rows.offsets[row] : rows.offsets[row + 1]]
            planted = rows.columns["trigger"][row] == number
            assert (here == token).sum() == (3 if planted else 0)


def test_por_poisons_a_text_the_same_whichever_chunk_it_comes_in() -> None:
    encode = PoisonEncoder(tiny_ptm().encoder(64), words("cf", "mn"), 0.6, 3, 0)
    whole = encode(SENTENCES, np.arange(24))
    parts = [encode(SENTENCES[a : a + 5], np.arange(24)[a : a + 5]) for a in range(0, 24, 5)]
    texts = {int(i): whole.take(np.array([n])).tokens.tolist() for n, i in enumerate(whole.index)}
    again = {
        int(i): part.take(np.array([n])).tokens.tolist()
        for part in parts
        for n, i in enumerate(part.index)
    }
    assert again == texts


def test_the_clean_text_is_what_a_packed_batch_holds_of_it() -> None:
    ptm = tiny_ptm()
    batch = packed(ptm, SENTENCES[:3])
    assert batch.num_samples == 3
    tokens = batch.tokens[: batch.num_tokens].tolist()
    assert tokens == encoded(ptm, SENTENCES[:3]).tokens.tolist()
