"""The family `vgg`: its groups, its channels, what it saves, and every source it loads from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_samples import CLASSES, image_batch, image_rows, logits_of, tiny_vgg
from safetensors.torch import load_file
from torch import nn

from recipe_ray.base.errors import DataError
from recipe_ray.data.batches import MemoryBatches
from recipe_ray.learn.loop import fit
from recipe_ray.learn.neuron_stats import prune
from recipe_ray.learn.objective import classification
from recipe_ray.learn.optim import FitSpec
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.family import MODELS
from recipe_ray.models.vision.vgg import VggArchitecture, VggPTM, load_vgg
from recipe_ray.stages.evaluate import predict

torchvision = pytest.importorskip("torchvision")

FIT = FitSpec(epochs=6, batch_size=8, optimizer="sgd", learning_rate=0.05, precision="fp32")


def on_no_device(arch: str) -> VggPTM:
    """Return a large VGG without memory for its weights."""
    architecture = VggArchitecture(arch=arch, image_size=224)
    with torch.device("meta"):
        return VggPTM(architecture.build(0), architecture)


def model(**fields: Any) -> Any:
    return MODELS.parse({"name": "vgg", **fields})


def test_the_seed_alone_decides_the_weights_of_an_untrained_vgg() -> None:
    torch.manual_seed(1)
    first = tiny_vgg().module.state_dict()
    torch.manual_seed(2)
    again, other = tiny_vgg().module.state_dict(), tiny_vgg(init_seed=1).module.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


def test_the_default_has_five_convolutions_for_images_of_32_and_64_pixels() -> None:
    for size in (32, 64):
        ptm = model(image_size=size, num_classes=10).load()
        assert len(ptm.weight_group("conv")) == 5
        features = ptm.features(ptm.module, image_batch(ptm, 2))
        assert features.shape == (2, ptm.feature_size) == (2, 512)


@pytest.mark.parametrize(("arch", "convolutions"), [("vgg16", 13), ("vgg16_bn", 13), ("vgg19", 16)])
def test_groups_and_channels_of_torchvisions_own_are_complete(arch: str, convolutions: int) -> None:
    ptm = on_no_device(arch)
    names = {id(parameter): name for name, parameter in ptm.module.named_parameters()}
    matrices = {n for n, p in ptm.module.named_parameters() if p.dim() > 1}
    groups = {g: [names[id(w)] for w in ptm.weight_group(g)] for g in ptm.weight_groups}
    assert len(groups["conv"]) == convolutions
    assert groups["fc"] == [f"classifier.{place}.weight" for place in (0, 3, 6)]
    assert {*groups["conv"], *groups["fc"]} == matrices
    assert ptm.feature_size == 512 * 7 * 7
    layers = ptm.neuron_layers()
    assert [names[id(layer.weight)] for layer in layers] == groups["conv"]
    assert layers[-1].num_neurons == 512
    further = {names[id(p)] for layer in layers for p in layer.further}
    vectors = {n for n, p in ptm.module.features.named_parameters() if p.dim() == 1}
    biases = {names[id(layer.bias)] for layer in layers}
    assert {*further, *biases} == {f"features.{name}" for name in vectors}


def test_named_vggs_have_torchvisions_names_and_shapes() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.vgg16_bn(num_classes=1000).state_dict()
    ours = on_no_device("vgg16_bn").module.state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_saved_vgg_reloads_equal_and_torchvision_loads_it_strictly(
    batch_norm: bool, tmp_path: Path
) -> None:
    ptm = tiny_vgg(batch_norm=batch_norm, mean=(0.5, 0.5, 0.5))
    with torch.no_grad():
        for name, buffer in ptm.module.named_buffers():
            if name.endswith("running_mean"):
                buffer.fill_(0.25)
    logits = logits_of(ptm)
    ptm.save(tmp_path / "saved")
    for reloaded in (load_vgg(tmp_path / "saved"), model(source=str(tmp_path / "saved")).load()):
        assert torch.equal(logits_of(reloaded), logits)
        assert reloaded.architecture == ptm.architecture
    vgg = torchvision.models.vgg
    with torch.device("meta"):  # its usual head is large
        plain = vgg.VGG(vgg.make_layers([8, "M", 12], batch_norm=batch_norm), init_weights=False)
        plain.avgpool = nn.AdaptiveAvgPool2d(2)
        plain.classifier = nn.Sequential(nn.Linear(48, CLASSES))
    weights = load_file(tmp_path / "saved" / "model.safetensors")
    plain.load_state_dict(weights, strict=True, assign=True)
    with torch.no_grad():
        theirs = plain.eval()(ptm.normalised(image_batch(ptm).pixels))
    torch.testing.assert_close(theirs, logits)


@torch.no_grad()
def test_activations_are_the_channels_means_after_relu() -> None:
    ptm = tiny_vgg(batch_norm=True)
    ptm.module.eval()
    batch = image_batch(ptm)
    first, second = ptm.neuron_activations(ptm.module, batch)
    maps = torch.relu(ptm.module.features[:2](ptm.normalised(batch.pixels)))
    torch.testing.assert_close(first, maps.mean((2, 3)))
    maps = torch.relu(ptm.module.features[4:6](ptm.module.features[3](maps)))
    torch.testing.assert_close(second, maps.mean((2, 3)))


@torch.no_grad()
@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_pruned_channel_is_silent_and_the_others_of_its_layer_are_not(batch_norm: bool) -> None:
    ptm = tiny_vgg(batch_norm=batch_norm)
    for vector in (p for p in ptm.module.features.parameters() if p.dim() == 1):
        vector.fill_(0.5)  # a shift alone would keep a channel alive
    ptm.module.eval()
    before = torch.cat(ptm.neuron_activations(ptm.module, image_batch(ptm)), 1)
    prune(ptm.neuron_layers(), torch.tensor([2, 8 + 5]))
    after = torch.cat(ptm.neuron_activations(ptm.module, image_batch(ptm)), 1)
    assert (before[:, [2, 13]] > 0).any(0).all()
    assert (after[:, [2, 13]] == 0).all()
    others = [number for number in range(8) if number != 2]
    assert torch.equal(before[:, others], after[:, others])


def fitted(module: Any, objective: Any, ptm: Any, collate: Any, **changes: Any) -> list[float]:
    batches = MemoryBatches(image_rows(ptm), collate, FIT.batch_size, 0)
    spec = FIT.revised(**changes)
    records = fit(module, objective, batches, spec, LocalRuntime(), seed=0)
    return [record.terms["cross_entropy"] for record in records]


def test_pre_training_from_scratch_learns_the_corpus_labels() -> None:
    ptm = tiny_vgg(batch_norm=True)
    collate = ptm.pretraining_collate(0, static_masks=False)
    losses = fitted(ptm.module, ptm.pretraining_objective(), ptm, collate)
    assert losses[-1] < 0.5 < losses[0]
    assert (logits_of(ptm).argmax(1) == image_batch(ptm).labels).all()


@pytest.mark.usefixtures("bf16_everywhere")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_classifier_trains_the_whole_network_under_a_new_last_layer(precision: str) -> None:
    ptm = tiny_vgg()
    rows = image_rows(ptm, classes=2)
    classifier = ptm.classifier(2, 5, [rows])
    assert torch.equal(
        tiny_vgg().classifier(2, 5, []).body.classifier[-1].weight,
        classifier.body.classifier[-1].weight,
    )
    before = {name: tensor.clone() for name, tensor in classifier.whole_state().items()}
    batches = MemoryBatches(rows, ptm.classifier_collate(), 8, 0)
    spec = FIT.revised(precision=precision)
    fit(classifier, classification, batches, spec, LocalRuntime(), seed=0)
    after = classifier.whole_state()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    predicted = predict(classifier, rows, ptm.classifier_collate(), LocalRuntime(), precision)
    assert np.array_equal(predicted, rows.columns["label"])


def test_fine_tuning_a_named_vgg_keeps_its_hidden_layers() -> None:
    with torch.device("meta"):
        ptm = on_no_device("vgg11")
        classifier: Any = ptm.classifier(3, 0, [])
        shapes = [list(p.shape) for p in classifier.body.classifier.parameters() if p.dim() == 2]
    assert shapes == [[4096, 25088], [4096, 4096], [3, 4096]]


def test_a_label_that_the_head_does_not_know_is_an_error_that_says_so() -> None:
    ptm = tiny_vgg(num_classes=3)
    with pytest.raises(DataError, match=r"label 3, .* 3 classes .* `num_classes` of 4 or more"):
        fitted(ptm.module, ptm.pretraining_objective(), ptm, ptm.pretraining_collate(0))


# --- sources
