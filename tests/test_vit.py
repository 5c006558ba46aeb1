"""The family `vit`: both libraries' layouts compute and count the same, save and reload."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_samples import CLASSES, image_batch, image_rows, logits_of, tiny_vit
from samples import changed, parameters_of
from torch import nn
from vit_samples import FIT, WIDTH, in_transformers, model, moved_vit

from recipe_ray.base.errors import DataError, SpecError
from recipe_ray.data.batches import MemoryBatches
from recipe_ray.defenses.rule import weight_rms
from recipe_ray.learn.loop import fit
from recipe_ray.learn.neuron_stats import prune
from recipe_ray.learn.objective import (
    Weighted,
    WeightNorms,
    WeightPart,
    classification,
    tensor_of,
    whole_parameters,
)
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.models.vision.vit import PENALISED, load_vit, torchvision_vit
from recipe_ray.models.vision.vit_network import VitArchitecture
from recipe_ray.stages.evaluate import held_out_eval, predict

torchvision = pytest.importorskip("torchvision")


@pytest.fixture(params=["torchvision", "transformers"])
def ptm(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Return the same tiny ViT in either library's layout."""
    ours = moved_vit()
    if request.param == "torchvision":
        return ours
    return load_vit(in_transformers(ours.module, tmp_path / "theirs"))


def test_both_libraries_compute_and_count_the_same(tmp_path: Path) -> None:
    ours = moved_vit()
    theirs = load_vit(in_transformers(ours.module, tmp_path))
    torch.testing.assert_close(logits_of(ours), logits_of(theirs))
    assert (ours.num_classes, ours.feature_size) == (theirs.num_classes, theirs.feature_size)
    assert (ours.feature_size, ours.num_classes) == (WIDTH, CLASSES)
    for group in ours.weight_groups:
        pairs = zip(ours.weight_group(group), theirs.weight_group(group), strict=True)
        assert all(torch.equal(tensor_of(a), tensor_of(b)) for a, b in pairs)
    with torch.no_grad():
        both = (p.neuron_activations(p.module, image_batch(p)) for p in (ours, theirs))
        for one, other in zip(*both, strict=True):
            torch.testing.assert_close(one, other)
    rows = image_rows(ours, 8)
    norms = [held_out_eval(p, rows, LocalRuntime()).norms for p in (ours, theirs)]
    assert norms[0] == pytest.approx(norms[1])
    assert weight_rms(ours, PENALISED) == pytest.approx(weight_rms(theirs, PENALISED))


def test_the_penalty_moves_a_fused_matrix_as_it_moves_three(tmp_path: Path) -> None:
    ours = moved_vit()
    theirs = load_vit(in_transformers(ours.module, tmp_path))
    for one in (ours, theirs):
        weights = [w for group in ("key", "value", "query") for w in one.weight_group(group)]
        WeightNorms(weights)(None, None)["norm"].total.backward()
    for place, layer in enumerate(ours.module.encoder.layers):
        fused = layer.self_attention.in_proj_weight.grad
        apart = [theirs.weight_group(group)[place].grad for group in ("query", "key", "value")]
        assert torch.equal(fused, torch.cat(apart))
        # of the whole matrix the norm has another gradient
        whole = layer.self_attention.in_proj_weight.detach()
        assert not torch.allclose(fused, whole / whole.norm(), atol=1e-3)


def test_a_saved_vit_reloads_equal(ptm: Any, tmp_path: Path) -> None:
    logits = logits_of(ptm)
    ptm.save(tmp_path / "saved")
    assert torch.equal(logits_of(load_vit(tmp_path / "saved")), logits)
    assert torch.equal(logits_of(model(source=str(tmp_path / "saved")).load()), logits)
    assert model().recognises(tmp_path / "saved")


@torch.no_grad()
def test_features_are_the_normalised_cls_state_and_the_head_reads_them(ptm: Any) -> None:
    ptm.module.eval()
    batch = image_batch(ptm)
    features = ptm.features(ptm.module, batch)
    assert features.shape == (batch.num_samples, WIDTH)
    weight, bias = ptm.head_parameters()
    torch.testing.assert_close(features @ weight.T + bias, logits_of(ptm))


@torch.no_grad()
def test_a_pruned_neuron_is_silent(ptm: Any) -> None:
    ptm.module.eval()
    before = torch.cat(ptm.neuron_activations(ptm.module, image_batch(ptm)), 1)
    assert before.shape == (6, 2 * 24)
    prune(ptm.neuron_layers(), torch.tensor([2, 24 + 5]))
    after = torch.cat(ptm.neuron_activations(ptm.module, image_batch(ptm)), 1)
    assert (before[:, [2, 29]] != 0).all()
    assert (after[:, [2, 29]] == 0).all()
    others = [number for number in range(24) if number != 2]
    assert torch.equal(before[:, others], after[:, others])


@pytest.mark.usefixtures("bf16_everywhere")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_classifier_trains_the_whole_network(ptm: Any, precision: str) -> None:
    rows = image_rows(ptm, classes=2)
    classifier = ptm.classifier(2, 5, [rows])
    before = {name: tensor.clone() for name, tensor in classifier.whole_state().items()}
    batches = MemoryBatches(rows, ptm.classifier_collate(), 8, 0)
    spec = FIT.revised(precision=precision)
    fit(classifier, classification, batches, spec, LocalRuntime(), seed=0)
    after = classifier.whole_state()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    predicted = predict(classifier, rows, ptm.classifier_collate(), LocalRuntime(), precision)
    assert np.array_equal(predicted, rows.columns["label"])


def test_pre_training_from_scratch_learns_and_refuses_labels_without_an_output() -> None:
    ptm = tiny_vit()
    collate = ptm.pretraining_collate(0, static_masks=False)
    batches = MemoryBatches(image_rows(ptm), collate, 8, 0)
    objective = ptm.pretraining_objective()
    longer = FIT.revised(epochs=20)
    records = fit(ptm.module, objective, batches, longer, LocalRuntime(), seed=0)
    assert records[-1].terms["cross_entropy"] < 0.5 < records[0].terms["cross_entropy"]
    narrow = tiny_vit(num_classes=2)
    with pytest.raises(DataError, match=r"label 3, .* 2 classes .* `num_classes` of 4 or more"):
        fit(narrow.module, narrow.pretraining_objective(), batches, FIT, LocalRuntime(), seed=0)


# --- parts of a fused matrix


def purified(ptm: Any, groups: tuple[str, ...]) -> set[str]:
    """Train the weights of groups alone on both terms of RECIPE; return what changed."""
    weights = [weight for group in groups for weight in ptm.weight_group(group)]
    ptm.train_only(whole_parameters(weights), pooled=False)
    before = parameters_of(ptm.module)
    batches = MemoryBatches(image_rows(ptm), ptm.pretraining_collate(0), 8, 0)
    objective = Weighted([(1.0, WeightNorms(weights)), (1.0, ptm.pretraining_objective())])
    fit(ptm.module, objective, batches, FIT.revised(steps=2), LocalRuntime(), seed=0)
    return changed(before, ptm.module)


def test_all_parts_of_a_fused_matrix_train_together_and_nothing_else() -> None:
    names = {f"encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight" for i in range(2)}
    assert purified(moved_vit(), ("query", "key", "value")) == names
    more = {f"encoder.layers.encoder_layer_{i}.mlp.0.weight" for i in range(2)}
    assert purified(moved_vit(), ("query", "fc1", "key", "value")) == names | more


def test_one_part_alone_is_refused_where_it_is_fused_and_trains_where_it_is_not(
    tmp_path: Path,
) -> None:
    ours = moved_vit()
    with pytest.raises(SpecError, match="query, key, value are rows of one matrix"):
        purified(ours, ("query",))
    with pytest.raises(SpecError, match="trainable: all"):
        purified(ours, ("query", "fc1", "value"))
    theirs = load_vit(in_transformers(ours.module, tmp_path))
    assert len(purified(theirs, ("query",))) == 2


def test_a_part_is_the_rows_as_they_are_now() -> None:
    whole = nn.Parameter(torch.zeros(6, 2))
    part = WeightPart(whole, 2, 4, ("one", "other"))
    with torch.no_grad():
        whole[3] = 1
    assert part.tensor().tolist() == [[0, 0], [1, 1]]
    assert (
        whole_parameters(
            [part, whole[:0], *[WeightPart(whole, a, b, ()) for a, b in ((0, 2), (4, 6))]]
        )[0]
        is whole
    )


# --- torchvision's layout


def test_groups_of_vit_b_16_are_complete() -> None:
    with torch.device("meta"):
        architecture = VitArchitecture(arch="vit_b_16", image_size=224)
        ptm = torchvision_vit(architecture.build(0), architecture)
    assert {group: len(ptm.weight_group(group)) for group in ptm.weight_groups} == dict.fromkeys(
        ("fc1", "fc2", "query", "key", "value", "attention_out"), 12
    )
    shapes = {g: {tuple(tensor_of(w).shape) for w in ptm.weight_group(g)} for g in PENALISED}
    square = {(768, 768)}
    assert shapes == {
        "fc1": {(3072, 768)},
        "fc2": {(768, 3072)},
        "query": square,
        "key": square,
        "value": square,
    }
    groups = [weight for group in ptm.weight_groups for weight in ptm.weight_group(group)]
    names = {id(parameter): name for name, parameter in ptm.module.named_parameters()}
    covered = {names[id(parameter)] for parameter in whole_parameters(groups)}
    blocks = ptm.module.encoder.layers.named_parameters()
    assert covered == {f"encoder.layers.{name}" for name, p in blocks if p.dim() == 2}
    assert ptm.purification_scope == (("fc1", "fc2", "query", "key", "value"), "all")
    assert (ptm.feature_size, ptm.num_classes, ptm.image_size) == (768, 1000, 224)
    assert [layer.num_neurons for layer in ptm.neuron_layers()] == [3072] * 12


def test_a_copy_of_the_module_is_read_as_the_module_itself(ptm: Any) -> None:
    other = copy.deepcopy(ptm.module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
        batch = image_batch(ptm)
        assert not torch.equal(ptm.features(other, batch), ptm.features(ptm.module, batch))
        halves, wholes = (ptm.neuron_activations(one, batch) for one in (other, ptm.module))
    assert not torch.equal(halves[0], wholes[0])
