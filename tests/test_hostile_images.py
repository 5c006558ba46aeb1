"""Configs of ViTs and CLIPs as an attacker writes them: code, sizes, normalisation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_samples import embeddings, tiny
from image_samples import CLASSES, logits_of
from safetensors.torch import load_file, save_file
from samples import raised_by
from vit_samples import in_transformers, model, moved_vit

pytest.importorskip("torchvision")
pytest.importorskip("open_clip", reason="needs recipe-ray[vision]")

from recipe_ray.base.errors import ModelError, UserError
from recipe_ray.models.vision.clip import Clip
from recipe_ray.models.vision.vit import load_vit

# --- ViT

ACTED_ON: dict[str, Any] = {
    "_attn_implementation": "org/repo",
    "auto_map": {"AutoModelForImageClassification": "own.Model"},
    "custom_pipelines": {"own": {"impl": "own.Pipeline", "pt": ["AutoModel"]}},
    "dtype": "load",
    "chunk_size_feed_forward": 7,
    "problem_type": "regression",
    "label2id": {"a": "b"},
}


@pytest.mark.parametrize("field", ACTED_ON)
def test_fields_that_transformers_would_act_on_are_left_behind(tmp_path: Path, field: str) -> None:
    ours = moved_vit().module
    plain = load_vit(in_transformers(ours, tmp_path / "plain"))
    hostile = load_vit(in_transformers(ours, tmp_path / "hostile", **{field: ACTED_ON[field]}))
    assert torch.equal(logits_of(plain), logits_of(hostile))
    plain.save(tmp_path / "one")
    hostile.save(tmp_path / "other")
    one, other = (
        json.loads((tmp_path / place / "config.json").read_text()) for place in ("one", "other")
    )
    assert one == other
    assert field == "dtype" or one.get(field) != ACTED_ON[field]


SIZES: dict[str, tuple[dict[str, Any], str]] = {
    "width": ({"hidden_size": 10**7}, r"config\.json: it asks for \d+ numbers"),
    "mlp": ({"intermediate_size": 10**10}, r"config\.json: it asks for .*mlp\.fc1.*10000000000"),
    "beyond 64 bits": ({"intermediate_size": 10**30}, r"config\.json: no model can be built"),
    "pixels": ({"image_size": 4 * 10**6}, r"config\.json: it asks .*position_embeddings"),
    "text as a width": ({"hidden_size": "16"}, r"config\.json: is no ViTConfig.*hidden_size"),
    "no heads": ({"num_attention_heads": 0}, r"config\.json: num_attention_heads is 0"),
    "no layers": ({"num_hidden_layers": 0}, r"config\.json: num_hidden_layers is 0"),
    "a million layers": ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000.* 2 layers"),
    "fewer layers": ({"num_hidden_layers": 1}, r"the weights have .*more.*layers\.\['1'\]"),
    "activation": ({"hidden_act": "evil"}, r"\(hidden_act\) 'evil'.*allowed"),
    "no patches": ({"patch_size": 0}, r"config\.json: patch_size is 0; allowed: 1 to image_size"),
    "large patches": ({"patch_size": [32, 4]}, r"config\.json: patch_size is \[32, 4\]"),
    "one side": ({"patch_size": [4]}, r"config\.json: no model can be built"),
    "grey": ({"num_channels": 1}, r"config\.json: num_channels is 1; allowed: 3"),
    "labels": ({"id2label": 5}, r"config\.json: id2label is 5; allowed: names by numbers"),
    "no labels": ({"id2label": {}}, r"config\.json: id2label is {}"),
    "labels by name": ({"id2label": {"a": "b"}}, r"config\.json: id2label is "),
    "many labels": ({"id2label": None, "num_labels": 10**12}, "num_labels is 1000000000000.*4 out"),
}


@pytest.mark.parametrize("size", SIZES)
def test_a_config_that_its_weights_do_not_bear_out_is_refused(tmp_path: Path, size: str) -> None:
    changes, said = SIZES[size]
    source = in_transformers(moved_vit().module, tmp_path, **changes)
    with pytest.raises(ModelError, match=said) as caught:
        load_vit(source)
    assert str(source) in str(caught.value)


def test_a_plan_asks_a_hostile_config_for_nothing_but_the_image_size(tmp_path: Path) -> None:
    source = in_transformers(moved_vit().module, tmp_path, id2label=None, num_labels=10**12)
    assert model(source=str(source)).sample_encoder().size == 16


def test_labels_keep_their_names_or_number_where_the_classifier_has_as_many(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    named = {str(number): name for number, name in enumerate(names)}
    ptm = load_vit(in_transformers(moved_vit().module, tmp_path / "named", id2label=named))
    ptm.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["id2label"] == named
    assert saved["label2id"] == {name: number for number, name in enumerate(names)}
    counted = {"id2label": None, "label2id": None, "num_labels": CLASSES}
    ptm = load_vit(in_transformers(moved_vit().module, tmp_path / "counted", **counted))
    assert ptm.num_classes == CLASSES


def test_quantized_weights_of_a_vit_are_named(tmp_path: Path) -> None:
    source = in_transformers(moved_vit().module, tmp_path)
    file = source / "model.safetensors"
    whole = load_file(file)
    save_file({**whole, "classifier.bias": whole["classifier.bias"].to(torch.int8)}, file)
    assert "classifier.bias is of torch.int8" in raised_by(lambda: load_vit(source))


# --- CLIP


def saved_clip(folder: Path, part: str, tower: str | None, **changes: Any) -> Path:
    """Save a tiny CLIP, change its config, and return the folder."""
    tiny().save(folder)
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    place = config[part] if tower is None else config[part][tower]
    place.update(changes)
    file.write_text(json.dumps(config))
    return folder


TOWERS: dict[str, tuple[str | None, dict[str, Any], str]] = {
    "embedding": (None, {"embed_dim": 10**9}, r"has shape .* says .*1000000000"),
    "beyond 64 bits": (None, {"embed_dim": 10**30}, r"clip_config\.json: .*embed_dim.*beyond 64"),
    "vocabulary": ("text_cfg", {"vocab_size": 10**12}, "token_embedding.*1000000000000"),
    "context": ("text_cfg", {"context_length": 10**7}, r"positional_embedding.*10000000"),
    "mlp": ("vision_cfg", {"mlp_ratio": 1e300}, r"clip_config\.json: no model can be built"),
    "layers": ("vision_cfg", {"layers": 10**6}, r"clip_config\.json: vision_cfg\.layers is 1000"),
    "text layers": ("text_cfg", {"layers": 10**6}, r"clip_config\.json: text_cfg\.layers is 1000"),
    "layers not there": (
        "vision_cfg",
        {"layers": 3},
        r"it lacks visual\.transformer\.resblocks\.2",
    ),
    "fewer layers": ("vision_cfg", {"layers": 1}, r"it has visual\.transformer\.resblocks\.1"),
}


@pytest.mark.parametrize("size", TOWERS)
def test_towers_that_the_weights_are_not_of_are_refused(tmp_path: Path, size: str) -> None:
    tower, changes, said = TOWERS[size]
    folder = saved_clip(tmp_path, "model_cfg", tower, **changes)
    with pytest.raises(UserError, match=said) as caught:
        Clip(source=str(folder)).load()
    assert str(folder) in str(caught.value)


def test_weights_that_a_tower_lacks_are_missed_before_it_is_made(tmp_path: Path) -> None:
    folder = saved_clip(tmp_path, "model_cfg", "text_cfg", context_length=10**8)
    file = folder / "open_clip_model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if n != "positional_embedding"}, file)
    assert "it lacks positional_embedding" in raised_by(Clip(source=str(folder)).load)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": 5},
        {"mean": {"a": 1}},
        {"mean": [0.5, 0.5]},
        {"mean": ["0.5", "0.5", "0.5"]},
        {"mean": [10**400, 0, 0]},
        {"std": [0, 0, 0]},
        {"std": [-1.0, 1.0, 1.0]},
        {"std": "abc"},
    ],
)
def test_a_normalisation_that_makes_no_sense_is_refused(tmp_path: Path, changes: Any) -> None:
    folder = saved_clip(tmp_path, "preprocess_cfg", None, **changes)
    with pytest.raises(ModelError, match=r"clip_config\.json: mean and std are three numbers each"):
        Clip(source=str(folder)).load()


def test_nor_may_it_be_infinite_or_no_number(tmp_path: Path) -> None:
    folder = saved_clip(tmp_path, "preprocess_cfg", None, mean=[float("nan"), 0, 0])
    assert "NaN is not a finite number" in raised_by(Clip(source=str(folder)).load)


def test_whole_numbers_are_a_normalisation_and_stay_what_they_are(tmp_path: Path) -> None:
    folder = saved_clip(tmp_path, "preprocess_cfg", None, mean=[1, 1, 1], std=[1, 1, 1])
    clip = Clip(source=str(folder))
    assert json.dumps(clip.content()["statistics"]) == "[[1, 1, 1], [1, 1, 1]]"
    assert embeddings(clip.load())[0].isfinite().all()
