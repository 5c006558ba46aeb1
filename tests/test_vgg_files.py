"""VGG checkpoints: where one is read from, what its key knows, what is refused."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from image_samples import CLASSES, SIZE, TINY_VGG, logits_of, tiny_vgg
from pydantic import ValidationError
from safetensors.torch import save_file
from samples import raised_by
from torch import Tensor

from recipe_ray.base.errors import UnsafeModelError
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.models.family import MODELS
from recipe_ray.models.vision.weight_source import ReleasedWeights
from recipe_ray.stages.pretrain import PretrainStage

torchvision = pytest.importorskip("torchvision")
TINY = {name: value for name, value in TINY_VGG.items() if name != "name"}


def model(**fields: Any) -> Any:
    return MODELS.parse({"name": "vgg", **fields})


def test_a_state_dict_loads_by_its_checksum_and_a_pickle_only_when_allowed(tmp_path: Path) -> None:
    ptm = tiny_vgg()
    state = ptm.module.state_dict()
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "a.safetensors")
    torch.save({"state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "a.pth")
    safe = model(**TINY, source=str(tmp_path / "a.safetensors"))
    pickled = model(**TINY, source=str(tmp_path / "a.pth"))
    assert torch.equal(logits_of(safe.load()), logits_of(ptm))
    with pytest.raises(UnsafeModelError, match="--allow-pickle"):
        pickled.load()
    assert torch.equal(logits_of(pickled.revised(allow_pickle=True).load()), logits_of(ptm))
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    copied = safe.revised(source=str(tmp_path / "b.safetensors"))
    assert copied.identity() == safe.identity() != pickled.identity()
    assert (safe.needs_pretraining, model().needs_pretraining) == (False, True)


def test_the_key_knows_the_input_size_the_normalisation_and_the_seed() -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"image_size": 64},
        {"num_classes": 10},
        {"mean": (0.5, 0.5, 0.5)},
        {"std": (0.5, 0.5, 0.5)},
        {"init_seed": 1},
        {"channels": [32, "M", 64]},
        {"batch_norm": True},
        {"grid": 1},
        {"arch": "vgg11"},
    ]
    keys = {fingerprint(model(**fields).identity()) for fields in variants}
    assert len(keys) == len(variants)
    named = {"arch": "vgg16", "source": "torchvision"}
    released = model(**named).identity()
    assert released["weights"] == {"torchvision": "vgg16-397923af.pth"}
    assert released["architecture"]["num_classes"] == 1000
    assert released["architecture"]["image_size"] == 224
    assert model(**named, image_size=64).identity() != released


def test_torchvisions_weights_are_checked_and_never_fully_unpickled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, Any] = {}

    def download(url: str, **how: Any) -> dict[str, Tensor]:
        seen.update(how, url=url)
        return {}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    released = ReleasedWeights("vgg11_bn", "IMAGENET1K_V1", allow_pickle=False)
    with pytest.raises(UnsafeModelError, match=r"vgg11_bn IMAGENET1K_V1.*--allow-pickle"):
        released.weights()
    assert not seen
    ReleasedWeights("vgg11_bn", "IMAGENET1K_V1", allow_pickle=True).weights()
    assert seen["url"].endswith("/vgg11_bn-6002323d.pth")
    assert (seen["check_hash"], seen["weights_only"]) == (True, True)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arch": "vgg16", "grid": 3}, "grid: only for arch small, not for vgg16"),
        ({"channels": ["M", 8]}, "channels must begin with a number"),
        ({"image_size": 4}, "too small for 3 poolings; allowed: 8 or more"),
        ({"channel": [8]}, "did you mean 'channels'"),
        ({"std": [0.5, 0.5, 0]}, "std"),
        ({"arch": "vgg17"}, "vgg16"),
    ],
)
def test_settings_that_do_not_fit_are_refused_at_once(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**fields)


def test_sources_that_cannot_be_used_say_what_would(tmp_path: Path) -> None:
    assert "does not exist; allowed: torchvision" in raised_by(model(source="./none").load)
    assert "needs an arch, such as vgg16" in raised_by(model(source="torchvision").load)
    # these have no classifier
    headless = model(source="torchvision", arch="vgg16", weights="IMAGENET1K_FEATURES")
    assert raised_by(headless.content).endswith("allowed: DEFAULT, IMAGENET1K_V1")
    tiny_vgg().save(tmp_path / "saved")
    other_head = model(source=str(tmp_path / "saved"), num_classes=7)
    message = raised_by(other_head.load)
    assert "classifier.0.bias has shape [4]" in message
    assert "num_classes" in message
    deeper = model(source=str(tmp_path / "saved"), channels=[8, "M", 12, 12])
    assert "lacks features.5.weight" in raised_by(deeper.load)
    (tmp_path / "weights.txt").touch()
    assert "allowed: .safetensors" in raised_by(model(source=str(tmp_path / "weights.txt")).load)


def test_a_folder_of_another_family_is_refused(tmp_path: Path) -> None:
    tiny_vgg().save(tmp_path)
    (tmp_path / "config.json").write_text('{"family": "vit"}')
    assert "family is 'vit', not 'vgg'" in raised_by(model(source=str(tmp_path)).load)


def test_a_folder_says_all_but_what_is_asked_for(tmp_path: Path) -> None:
    tiny_vgg(batch_norm=True).save(tmp_path / "saved")
    ptm = model(source=str(tmp_path / "saved"), image_size=32).load()
    assert (ptm.image_size, ptm.architecture.batch_norm, ptm.num_classes) == (32, True, CLASSES)
    assert model(source=str(tmp_path / "saved")).load().image_size == SIZE


def test_images_are_decoded_as_the_model_reads_them_without_loading_it() -> None:
    reference = MODELS.parse(TINY_VGG)
    assert reference.sample_encoder() == tiny_vgg().encoder(64)
    assert (reference.label_limit(), model().label_limit()) == (CLASSES, 1000)


def test_a_stage_refuses_a_corpus_with_more_classes_than_the_head() -> None:
    def stage(num_classes: int) -> PretrainStage:
        small = model(**{**TINY, "num_classes": num_classes})
        return PretrainStage(model=small, corpus="cifar10", seed=0)

    assert stage(10).model.label_limit() == 10
    with pytest.raises(ValidationError, match=r"head of 4 classes; corpus 'cifar10' has labels of"):
        stage(4)
