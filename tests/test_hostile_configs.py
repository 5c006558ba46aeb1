"""config.json of a BERT or RoBERTa as an attacker writes it: sizes, code, kernels, leftovers."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import HIDDEN, packed, raised_by, reconfigured, states_of, tiny_ptm
from torch import Tensor

from recipe_ray.base.errors import ModelError
from recipe_ray.models.family import MODELS
from recipe_ray.models.text.checkpoint import load_bert
from recipe_ray.models.text.packed import pack
from recipe_ray.models.text.packed_encoder import ATTENTION

TEXTS = ["Call me Ishmael.", "All happy families are alike."]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of one layer in RoBERTa's architecture."""
    place = tmp_path_factory.mktemp("roberta")
    MODELS.parse({"name": "minilm-roberta", "layers": 1}).load().save(place)
    return place


def reweighted(folder: Path, change: Any) -> Path:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


# --- sizes

SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "vocabulary": ({"vocab_size": 10**9}, r"word_embeddings.*says \[1000000000, 32\]"),
    "beyond 64 bits": ({"vocab_size": 10**30}, r"config\.json: no model can be built"),
    "width": ({"hidden_size": 10**7}, r"embeddings.*says \[10000000\]"),
    "text as a width": ({"hidden_size": "8"}, r"config\.json: is no BertConfig.*hidden_size"),
    "negative width": ({"hidden_size": -8}, r"config\.json: hidden_size is -8; .* 1 or more"),
    "no heads": ({"num_attention_heads": 0}, r"config\.json: num_attention_heads is 0"),
    "heads that do not fit": ({"num_attention_heads": 5}, r"config\.json: .*attention heads \(5\)"),
    "activation": ({"hidden_act": "gelo"}, r"config\.json: .*\(hidden_act\) 'gelo'.*'gelu'"),
    "padding": ({"pad_token_id": 30522}, r"config\.json: pad_token_id is 30522; allowed: 0 to"),
    "negative padding": ({"pad_token_id": -1}, r"config\.json: pad_token_id is -1"),
    "dropout": ({"hidden_dropout_prob": 1.5}, r"config\.json: hidden_dropout_prob is 1\.5; .*1"),
    "dropout of all": ({"attention_probs_dropout_prob": 1.0}, r"dropout_prob is 1\.0; .* below 1"),
    "dropout of a head": ({"classifier_dropout": 1}, r"classifier_dropout is 1; .* below 1"),
    "a large epsilon": ({"layer_norm_eps": 1e300}, r"layer_norm_eps is 1e\+300; .* below 0\.1"),
    "epsilon": ({"layer_norm_eps": -1e-5}, r"config\.json: layer_norm_eps is -1e-05"),
    "no layers": ({"num_hidden_layers": 0}, r"config\.json: num_hidden_layers is 0"),
    "a million layers": ({"num_hidden_layers": 10**6}, r"num_hidden_layers is 1000000.* 2 layers"),
    "fewer layers": (
        {"num_hidden_layers": 1},
        r"is 1, but the weights have .*more.*layer\.\['1'\]",
    ),
    "places": ({"max_position_embeddings": 2}, "max_position_embeddings 2 leave room for 2 tokens"),
    "a decoder": ({"is_decoder": True}, r"config\.json: is_decoder is true"),
    "other positions": ({"position_embedding_type": "relative_key"}, r"allowed: 'absolute'"),
}


@pytest.mark.parametrize("size", SIZES)
def test_a_config_that_its_weights_do_not_bear_out_is_refused(folder: Path, size: str) -> None:
    changes, said = SIZES[size]
    with pytest.raises(ModelError, match=said) as caught:
        load_bert(reconfigured(folder, **changes))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.1.output.dense.bias"]
)
def test_weights_that_are_no_numbers_are_refused(folder: Path, name: str, number: float) -> None:
    def change(weights: dict[str, Tensor]) -> dict[str, Tensor]:
        weights[name].view(-1)[-1] = number  # a row that no text of ours reaches
        return weights

    with pytest.raises(ModelError, match=rf"{name} has numbers that are not finite"):
        load_bert(reweighted(folder, change))


def test_what_is_not_in_the_weights_at_all_is_missed_before_it_is_made(folder: Path) -> None:
    name = "bert.embeddings.position_embeddings.weight"
    reweighted(folder, lambda whole: {n: t for n, t in whole.items() if n != name})
    reconfigured(folder, max_position_embeddings=10**12)
    assert f"weights missing: {name}" in raised_by(lambda: load_bert(folder))


def test_the_first_place_of_a_roberta_lies_behind_its_padding(
    roberta: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(roberta, tmp_path / "model")
    for padding, said in ((None, "pad_token_id is None"), (600, "leave room for -88 tokens")):
        message = raised_by(lambda p=padding: load_bert(reconfigured(place, pad_token_id=p)))
        assert said in message


# --- layers


def test_weights_of_a_layer_that_the_config_keeps_quiet_about_are_refused(folder: Path) -> None:
    name = "bert.encoder.layer.7.output.dense.weight"
    reweighted(folder, lambda whole: {**whole, name: torch.zeros(HIDDEN, 64)})
    assert "have more layers: bert.encoder.layer.['7']" in raised_by(lambda: load_bert(folder))


def test_a_pooler_and_buffers_beside_the_layers_are_harmless(folder: Path) -> None:
    others = {
        "bert.embeddings.position_ids": torch.arange(512)[None],
        "bert.encoder.layer.1.attention.self.extra": torch.zeros(3),
        "cls.seq_relationship.weight": torch.zeros(2, HIDDEN),
    }
    reweighted(folder, lambda whole: {**whole, **others})
    before, after = states_of(tiny_ptm(), TEXTS), states_of(load_bert(folder), TEXTS)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_cut_minilm_saves_and_loads_with_the_layers_it_has(tmp_path: Path) -> None:
    MODELS.parse({"name": "minilm", "layers": [1, 4]}).load().save(tmp_path)
    assert load_bert(tmp_path).module.config.num_hidden_layers == 2


# --- code, kernels, types

ACTED_ON: dict[str, Any] = {
    "_attn_implementation": "org/repo",
    "attn_implementation": "org/repo",
    "auto_map": {"AutoModel": "own.Model", "AutoConfig": "org/repo--own.Config"},
    "custom_pipelines": {"own": {"impl": "own.Pipeline", "pt": ["AutoModel"]}},
    "dtype": "load",
    "torch_dtype": "load",
    "chunk_size_feed_forward": 7,
    "id2label": 5,
    "num_labels": 10**12,
    "output_attentions": True,
    "problem_type": "regression",
    "per_layer_config": {"0": {"hidden_size": 7}},
}


@pytest.mark.parametrize("field", ACTED_ON)
def test_fields_that_transformers_would_act_on_are_left_behind(
    folder: Path, tmp_path: Path, field: str
) -> None:
    ptm = load_bert(reconfigured(folder, **{field: ACTED_ON[field]}))
    assert ptm.module.config._attn_implementation == ATTENTION
    before, after = states_of(tiny_ptm(), TEXTS), states_of(ptm, TEXTS)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    ptm.save(tmp_path / "saved")
    tiny_ptm().save(tmp_path / "plain")
    saved = (tmp_path / "saved" / "config.json").read_text()
    assert saved == (tmp_path / "plain" / "config.json").read_text()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("transformers_weights", "other.bin"),
        ("transformers_weights", "../other.safetensors"),
        ("transformers_weights", "missing.safetensors"),
    ],
)
def test_fields_that_make_other_weights_of_it_are_refused(
    folder: Path, field: str, value: Any
) -> None:
    said = raised_by(lambda: load_bert(reconfigured(folder, **{field: value})))
    assert field in said or str(value) in said


# --- positions


def test_a_model_of_few_places_reads_texts_cut_to_them(folder: Path) -> None:
    name = "bert.embeddings.position_embeddings.weight"
    reweighted(folder, lambda whole: {**whole, name: whole[name][:16].clone()})
    ptm = load_bert(reconfigured(folder, max_position_embeddings=16))
    long = [" ".join(TEXTS * 3), TEXTS[0]]
    batch = packed(ptm, long, max_length=64)
    assert int(batch.positions.max()) == 15
    states = ptm.hidden(ptm.module, batch)
    assert states.isfinite().all()
    pack(ptm.encoder(64)(long, torch.arange(2).numpy()))


def test_where_the_filler_lies_changes_no_bit_of_a_text(folder: Path) -> None:
    ptm = load_bert(folder)
    batch = packed(ptm, TEXTS)
    filler = len(batch.tokens) - batch.num_tokens
    assert filler
    assert batch.positions[batch.num_tokens :].eq(0).all()
    elsewhere = batch.positions.clone()
    elsewhere[batch.num_tokens :] = torch.arange(filler)

    def run(positions: Tensor) -> list[Tensor]:
        ptm.module.zero_grad()
        torch.manual_seed(0)
        object.__setattr__(batch, "positions", positions)
        states = ptm.hidden(ptm.module.train(), batch)
        states.square().sum().backward()
        grads = [p.grad.clone() for p in ptm.module.parameters() if p.grad is not None]
        return [states.detach(), *grads]

    for one, other in zip(run(batch.positions), run(elsewhere), strict=True):
        assert torch.equal(one, other)
