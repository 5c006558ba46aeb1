"""ViT checkpoints: what is saved, where one is read from, what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_samples import CLASSES, SIZE, TINY_VIT, image_batch, logits_of, tiny_vit
from safetensors.torch import load_file, save_file
from samples import COMMIT, raised_by
from torch import Tensor
from transformers import AutoImageProcessor, ViTForImageClassification
from vit_samples import WIDTH, in_transformers, model, moved_vit

from recipe_ray.base.errors import UnsafeModelError
from recipe_ray.data.hub import HubSnapshot
from recipe_ray.models.family import MODELS
from recipe_ray.models.vision.vit import load_vit

torchvision = pytest.importorskip("torchvision")


def test_torchvision_loads_what_was_saved_strictly(tmp_path: Path) -> None:
    ptm = moved_vit()
    ptm.save(tmp_path)
    plain = torchvision.models.VisionTransformer(
        image_size=SIZE,
        patch_size=4,
        num_layers=2,
        num_heads=2,
        hidden_dim=WIDTH,
        mlp_dim=24,
        num_classes=CLASSES,
    )
    plain.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    with torch.no_grad():
        theirs = plain.eval()(ptm.normalised(image_batch(ptm).pixels))
    torch.testing.assert_close(theirs, logits_of(ptm))


def test_the_seed_alone_decides_the_weights_of_an_untrained_vit() -> None:
    torch.manual_seed(1)
    first = tiny_vit().module.state_dict()
    torch.manual_seed(2)
    again, other = tiny_vit().module.state_dict(), tiny_vit(init_seed=1).module.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv_proj.weight"], other["conv_proj.weight"])


def test_the_default_is_four_blocks_of_128_for_32_pixels() -> None:
    ptm = model(num_classes=10).load()
    assert (ptm.image_size, ptm.feature_size, len(ptm.weight_group("key"))) == (32, 128, 4)
    assert ptm.logits(ptm.module, image_batch(ptm, 2)).shape == (2, 10)
    assert model().sample_encoder() == ptm.encoder(64)
    assert (MODELS.parse(TINY_VIT).label_limit(), model().label_limit()) == (CLASSES, 1000)


# --- transformers' layout


def test_transformers_loads_what_was_saved_with_its_normalisation(tmp_path: Path) -> None:
    source = in_transformers(moved_vit().module, tmp_path / "source")
    ptm = model(source=str(source), mean=(0.5, 0.4, 0.3), std=(0.5, 0.25, 0.125)).load()
    ptm.save(tmp_path / "saved")
    built: Any = ViTForImageClassification
    plain = built.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        theirs = plain(ptm.normalised(image_batch(ptm).pixels)).logits
    assert torch.equal(theirs, logits_of(ptm))
    loader: Any = AutoImageProcessor
    processor = loader.from_pretrained(tmp_path / "saved")
    assert list(processor.image_mean) == [0.5, 0.4, 0.3]
    image = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    pixels = processor(images=image, return_tensors="pt").pixel_values
    ours = ptm.normalised(torch.full((1, 3, SIZE, SIZE), 255, dtype=torch.uint8))
    torch.testing.assert_close(pixels, ours, rtol=1e-5, atol=1e-5)


def test_the_normalisation_is_the_preprocessors_or_imagenets(tmp_path: Path) -> None:
    source = in_transformers(moved_vit().module, tmp_path)
    white = torch.full((1, 3, SIZE, SIZE), 255, dtype=torch.uint8)

    def first() -> float:
        return float(load_vit(source).normalised(white)[0, 0, 0, 0])

    assert first() == pytest.approx((1 - 0.485) / 0.229)
    file = source / "preprocessor_config.json"
    file.write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}')
    assert first() == pytest.approx(1)
    file.write_text('{"do_normalize": false, "image_mean": [0.5, 0.5, 0.5]}')
    assert first() == pytest.approx(1)
    file.write_text('{"image_mean": [0.5], "image_std": [0.5, 0.5, 0]}')
    assert "three numbers each" in raised_by(lambda: load_vit(source))


def test_the_key_of_a_transformers_folder_knows_weights_and_settings(tmp_path: Path) -> None:
    source = in_transformers(moved_vit().module, tmp_path)
    reference = model(source=str(source))
    first = reference.identity()
    assert reference.revised(mean=(0.1, 0.2, 0.3)).identity() != first
    (source / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3]}')
    assert reference.identity() != first


def test_a_hub_model_is_its_commit_and_loads_from_the_snapshot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ours = moved_vit()
    folder = in_transformers(ours.module, tmp_path)
    asked: list[Any] = []

    def fetch(repo: str, revision: str | None, *, allow_pickle: bool) -> HubSnapshot:
        asked.append((repo, revision, allow_pickle))
        return HubSnapshot(folder, COMMIT)

    for user in ("models.vision.vit", "data.hub"):
        monkeypatch.setattr(f"recipe_ray.{user}.fetch_model", fetch)
    pinned = model(source="someone/vit-tiny", revision=COMMIT)
    assert pinned.content() == {"hub": "someone/vit-tiny", "commit": COMMIT}
    assert asked == []
    assert model(source="someone/vit-tiny", revision="main").content() == pinned.content()
    assert model(source="someone/vit-tiny", revision="main").pinned() == pinned
    torch.testing.assert_close(logits_of(pinned.load()), logits_of(ours))
    assert asked[-1] == ("someone/vit-tiny", COMMIT, False)
    assert pinned.label() == "vit-tiny"
    assert (pinned.opens_with, model().opens_with) == ("transformers", "torchvision")
    assert pinned.sample_encoder() == ours.encoder(64)


def test_what_is_wrong_with_a_checkpoint_is_named(tmp_path: Path) -> None:
    ours = moved_vit()
    source = in_transformers(ours.module, tmp_path / "whole")
    message = raised_by(model(source=str(source), num_classes=7, width=32).load)
    assert "num_classes, width cannot be given" in message
    wide = in_transformers(ours.module, tmp_path / "wide", intermediate_size=48)
    assert "weights mismatched: vit." in raised_by(lambda: load_vit(wide))
    deep = in_transformers(ours.module, tmp_path / "deep", num_hidden_layers=3)
    assert "weights missing: vit." in raised_by(lambda: load_vit(deep))
    other = in_transformers(ours.module, tmp_path / "other", model_type="deit")
    assert "model_type 'deit'; family vit reads 'vit'" in raised_by(lambda: load_vit(other))
    oblong = in_transformers(ours.module, tmp_path / "oblong", image_size=[16, 8])
    assert "only squares" in raised_by(lambda: load_vit(oblong))


def test_a_pickled_checkpoint_is_read_only_when_allowed(tmp_path: Path) -> None:
    source = in_transformers(moved_vit().module, tmp_path)
    logits = logits_of(load_vit(source))
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(UnsafeModelError, match="--allow-pickle"):
        model(source=str(source)).load()
    allowed = model(source=str(source), allow_pickle=True).load()
    assert torch.equal(logits_of(allowed), logits)


# --- settings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "vit_b_16", "width": 64}, "width: only for arch small, not for vit_b_16"),
        ({"image_size": 30}, "image_size 30 is not a multiple of the patches' 4"),
        ({"arch": "vit_b_16", "image_size": 100}, "not a multiple of the patches' 16"),
        ({"width": 100, "heads": 3}, "width 100 is not a multiple of 3 heads"),
        ({"dept": 3}, "did you mean 'depth'"),
        ({"arch": "vit_b_17"}, "vit_b_16"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_once(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**fields)


def test_torchvisions_weights_name_their_file_and_what_they_were_trained_with() -> None:
    released = model(source="torchvision", arch="vit_b_16")
    content = released.content()
    assert content["weights"] == {"torchvision": "vit_b_16-c867db91.pth"}
    assert content["architecture"]["image_size"] == 224
    larger = released.revised(weights="IMAGENET1K_SWAG_E2E_V1").content()
    assert larger["architecture"]["image_size"] == 384
    with pytest.raises(UnsafeModelError, match="vit_b_16 IMAGENET1K_V1"):
        released.load()


# --- the weights of a transformers folder, tensor by tensor


def _newer_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("vit.encoder.layer.", "vit.layers."): t for name, t in weights.items()}


def _in_half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.half() for name, tensor in weights.items()}


def _wrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def _more(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**weights, "vit.pooler.dense.weight": torch.zeros(WIDTH, WIDTH)}


@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
@pytest.mark.parametrize("change", [dict, _newer_names, _in_half, _more, _wrapped])
def test_a_vit_is_opened_as_transformers_opens_it(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], dtype: str | None
) -> None:
    folder = in_transformers(moved_vit().module, tmp_path / "vit", dtype=dtype)
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    ours = model(source=str(folder)).load().module.state_dict()
    if change is _wrapped:  # which transformers does not read
        plain = {name.removeprefix("module."): tensor for name, tensor in load_file(file).items()}
        save_file(plain, file, metadata={"format": "pt"})
    built: Any = ViTForImageClassification.from_pretrained(folder)
    theirs = built.float().state_dict()
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_a_vit_with_two_names_for_one_weight_is_refused(tmp_path: Path) -> None:
    folder = in_transformers(moved_vit().module, tmp_path / "vit")
    file = folder / "model.safetensors"
    weights = load_file(file)
    old = next(name for name in weights if ".layer." in name or ".layers." in name)
    new = (
        old.replace("vit.encoder.layer.", "vit.layers.")
        if ".encoder." in old
        else old.replace("vit.layers.", "vit.encoder.layer.")
    )
    save_file({**weights, new: weights[old] + 1}, file, metadata={"format": "pt"})
    assert "under both an older and a newer name" in raised_by(
        lambda: model(source=str(folder)).load()
    )
