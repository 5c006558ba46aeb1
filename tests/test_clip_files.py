"""Model `clip`: where it is loaded from, what is refused, and who can load what it saves."""

import json
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from clip_samples import TINY, batch, embeddings, tiny
from pydantic import ValidationError
from samples import COMMIT, raised_by

pytest.importorskip("open_clip", reason="needs recipe-ray[vision]")

import open_clip

from recipe_ray.base.errors import ModelError, SpecError, UnsafeModelError
from recipe_ray.base.fingerprint import fingerprint
from recipe_ray.models.vision.clip import Clip
from recipe_ray.models.vision.clip_weights import architectures

# -- where it comes from ---------------------------------------------------------------------------


def test_an_unknown_architecture_gets_the_nearest_name() -> None:
    said = raised_by(Clip(arch="ViT-B32").load)
    assert "unknown CLIP architecture 'ViT-B32' (did you mean 'ViT-B-32'?)" in said


def test_towers_of_another_kind_are_refused_by_name() -> None:
    assert "ViT-B-32" in architectures()
    for other in ("RN50", "ViT-B-16-SigLIP", "roberta-ViT-B-32", "coca_ViT-B-32"):
        assert f"{other!r} is not supported" in raised_by(Clip(arch=other).load)


def test_an_unknown_tag_gets_the_nearest_one_before_anything_is_downloaded() -> None:
    said = raised_by(Clip(arch="ViT-B-32", pretrained="openay").content)
    assert "unknown pretrained tag of ViT-B-32 'openay' (did you mean 'openai'?)" in said


def test_a_pinned_tag_has_its_key_without_a_download() -> None:
    fields = {"arch": "ViT-B-32", "pretrained": "openai"}
    assert Clip(**fields, revision=COMMIT).content() == {**fields, "commit": COMMIT}
    assert not Clip(**fields, revision=COMMIT).needs_pretraining


@pytest.mark.parametrize(
    "fields",
    [
        {"pretrained": "openai"},
        {"arch": "ViT-B-32", "pretrained": "openai", "source": "folder"},
        {"revision": COMMIT},
        {"arch": "ViT-B-32", **TINY},
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"goes with|which is not given|describes a new CLIP"):
        Clip.model_validate(fields)


def asked_hub(monkeypatch: pytest.MonkeyPatch, held: dict[str, Path]) -> list[tuple[Any, ...]]:
    """Let open_clip's download find these files alone; return what it was asked for."""
    asked: list[tuple[Any, ...]] = []

    def download(repo: str, filename: str, revision: str | None) -> str:
        asked.append((repo, filename, revision))
        if filename not in held:
            raise FileNotFoundError(f"Failed to download file ({filename})")
        return str(held[filename])

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_hf", download)
    return asked


def test_the_hub_is_asked_for_safetensors_alone_unless_a_pickle_is_allowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asked_hub(monkeypatch, {})
    fields = {"arch": "ViT-B-32", "pretrained": "openai"}
    assert "a pickle is taken only with `allow_pickle`" in raised_by(Clip(**fields).load)
    repo = "timm/vit_base_patch32_clip_224.openai"
    assert asked == [(repo, "open_clip_model.safetensors", None)]
    raised_by(Clip(**fields, allow_pickle=True).load)
    assert asked[1:] == [(*asked[0][:1], name, None) for name in PICKLED_LAST]


PICKLED_LAST = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def test_a_downloaded_model_is_known_by_its_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / COMMIT / "open_clip_model.safetensors"
    asked_hub(monkeypatch, {file.name: file})
    fields = {"arch": "ViT-B-32", "pretrained": "openai"}
    assert Clip(**fields).content() == {**fields, "commit": COMMIT}
    assert Clip(**fields).pinned() == Clip(**fields, revision=COMMIT)
    assert Clip().pinned() == Clip()


# -- files -----------------------------------------------------------------------------------------


def test_open_clip_loads_a_saved_clip_with_equal_features(tmp_path: Path) -> None:
    ptm = tiny()
    ptm.save(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "open_clip_config.json",
        "open_clip_model.safetensors",
    }
    module, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    module.eval()
    images, texts = embeddings(ptm)
    some = batch(ptm)
    with torch.no_grad():
        assert torch.equal(module.encode_image(ptm.normalised(some.pixels)), images)
        assert torch.equal(module.encode_text(some.captions), texts)
    assert tuple(transform.transforms[-1].mean) == open_clip.OPENAI_DATASET_MEAN


def test_a_saved_clip_reloads_the_same_and_its_place_is_no_part_of_its_key(tmp_path: Path) -> None:
    ptm = tiny(init_seed=3)
    keys = []
    for place in (tmp_path / "one", tmp_path / "two"):
        ptm.save(place)
        model = Clip(source=str(place))
        assert not model.needs_pretraining
        for loaded in (model.load(), Clip().reload(place)):
            for found, wanted in zip(embeddings(loaded), embeddings(ptm), strict=True):
                assert torch.equal(found, wanted)
        keys.append(fingerprint(model.identity()))
    assert keys[0] == keys[1]
    tiny(init_seed=4).save(tmp_path / "two")
    assert fingerprint(model.identity()) != keys[0]
    assert Clip.recognises(place)


def test_a_pickle_is_read_only_where_allowed(tmp_path: Path) -> None:
    ptm = tiny()
    ptm.save(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    # as open_clip's training script keeps one
    named = {f"module.{name}": tensor for name, tensor in ptm.module.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": named}, tmp_path / "epoch_1.pt")
    source = str(tmp_path / "epoch_1.pt")
    for place in (source, str(tmp_path)):
        with pytest.raises(UnsafeModelError, match="allow-pickle"):
            Clip(source=place).load()
        loaded = Clip(source=place, allow_pickle=True).load()
        assert torch.equal(embeddings(loaded)[0], embeddings(ptm)[0])


class Harm:
    """What a hostile file would run."""

    def __reduce__(self) -> Any:
        return os.mkdir, (Harm.mark,)

    mark = ""


def test_code_in_a_pickle_does_not_run_even_where_pickles_are_allowed(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    Harm.mark = str(tmp_path / "harmed")
    (tmp_path / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(UnsafeModelError, match="weights_only"):
        Clip(source=str(tmp_path), allow_pickle=True).load()
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("tower", "field", "value"),
    [
        ("text_cfg", "hf_model_name", "someone/with-remote-code"),
        ("vision_cfg", "timm_model_name", "vit_base_patch32_224"),
        ("vision_cfg", "layers", [2, 2, 2, 2]),
    ],
)
def test_a_config_that_asks_for_other_towers_is_refused(
    tower: str, field: str, value: Any, tmp_path: Path
) -> None:
    tiny().save(tmp_path)
    file = tmp_path / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"][tower][field] = value
    file.write_text(json.dumps(config))
    with pytest.raises(SpecError, match=f"{file.name}.*{field}"):
        Clip(source=str(tmp_path)).load()


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    said = raised_by(Clip(source=str(tmp_path), arch="ViT-S-32-alt").load)
    assert "open_clip_model.safetensors" in said
    assert "has shape" in said


def test_a_file_alone_needs_its_architecture(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(ModelError, match="give `arch`"):
        Clip(source=str(tmp_path / "open_clip_model.safetensors")).load()


def test_a_clip_from_scratch_is_drawn_by_its_seed_alone() -> None:
    torch.manual_seed(5)
    first = embeddings(tiny())[0]
    drawn = torch.rand(1)
    torch.manual_seed(6)
    assert torch.equal(embeddings(tiny())[0], first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)
    assert not torch.equal(embeddings(tiny(init_seed=1))[0], first)
    keys = {fingerprint(Clip(init_seed=seed).identity()) for seed in (0, 1)}
    assert len(keys) == 2


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert "pip install 'recipe-ray[vision]'" in raised_by(Clip().load)
    assert Clip().content()["config"]["embed_dim"] == 128  # a plan needs no library
