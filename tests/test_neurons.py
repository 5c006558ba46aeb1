"""Neurons: what they put out in a real PTM, how they are pruned, sums of activations by hand."""

import pytest
import torch
from samples import SENTENCES, minilm, packed, tiny_ptm
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import BertModel

from recipe_ray.learn.neuron_stats import (
    NeuronLayer,
    Overlap,
    least_active,
    outputs_of,
    overlap_of_means,
    overlap_of_samples,
    pair_sums,
    prune,
)
from recipe_ray.models.text.bert import BertPTM

TEXTS = SENTENCES[:5]
# 3 samples, 4 neurons
CLEAN = torch.tensor([[1.0, -1.0, 2.0, 0.0], [1.0, -1.0, -3.0, 0.0], [1.0, 5.0, -3.0, 0.0]])
POISONED = torch.tensor([[1.0, 1.0, 2.0, 0.0], [1.0, 1.0, 2.0, -1.0], [-1.0, 1.0, 2.0, 0.5]])


@torch.no_grad()
def first_states(ptm: BertPTM, text: str) -> list[Tensor]:
    """Return what goes into each layer's neurons at the first token, by transformers' own pass."""
    reference = BertModel(ptm.module.config).eval()
    reference.load_state_dict(ptm.module.bert.state_dict())
    reference.set_attn_implementation("eager")
    seen: list[Tensor] = []
    for layer in reference.encoder.layer:
        layer.intermediate.register_forward_pre_hook(lambda _, given: seen.append(given[0][0, 0]))
    reference(torch.tensor([ptm.tokenizer.encode(text)]))
    return seen


def test_activations_are_those_that_each_text_alone_has() -> None:
    ptm = minilm(2)
    ptm.module.eval()
    with torch.no_grad():
        activations = ptm.neuron_activations(ptm.module, packed(ptm, TEXTS))
    assert [tuple(layer.shape) for layer in activations] == [(5, 1536), (5, 1536)]
    for number, text in enumerate(TEXTS):
        attended = first_states(ptm, text)
        for states, layer, ours in zip(attended, ptm.neuron_layers(), activations, strict=True):
            expected = gelu(layer.weight @ states + layer.bias)
            torch.testing.assert_close(ours[number], expected, rtol=1e-4, atol=1e-5)


def test_neuron_layers_are_the_intermediate_ones_and_go_with_the_ptm() -> None:
    ptm = tiny_ptm()
    layers = ptm.neuron_layers()
    assert [layer.num_neurons for layer in layers] == [64, 64]
    assert all(a.weight is b for a, b in zip(layers, ptm.weight_group("ffn_in"), strict=True))


def test_a_pruned_neuron_puts_out_nothing_and_the_others_stay() -> None:
    ptm = minilm(2)
    ptm.module.eval()
    batch = packed(ptm, TEXTS)
    with torch.no_grad():
        before = ptm.neuron_activations(ptm.module, batch)
        prune(ptm.neuron_layers(), torch.tensor([3, 1535, 1536, 2000]))
        after = ptm.neuron_activations(ptm.module, batch)
    assert (before[0][:, [3, 1535]] != 0).all()
    assert (after[0][:, [3, 1535]] == 0).all()
    assert (after[1][:, [0, 464]] == 0).all()
    kept = [n for n in range(1536) if n not in (3, 1535)]
    assert torch.equal(after[0][:, kept], before[0][:, kept])


def test_neurons_are_numbered_layer_by_layer() -> None:
    layers = [
        NeuronLayer(nn.Parameter(torch.ones(n, 2)), nn.Parameter(torch.ones(n))) for n in (2, 3)
    ]
    prune(layers, torch.tensor([4, 1]))
    assert [layer.bias.tolist() for layer in layers] == [[1, 0], [1, 1, 0]]
    assert [layer.weight[:, 0].tolist() for layer in layers] == [[1, 0], [1, 1, 0]]


def test_no_hook_is_left_behind_even_by_an_error() -> None:
    layer = nn.Linear(2, 2)

    def fail() -> None:
        with outputs_of([layer], lambda output: output):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert not layer._forward_hooks


def test_the_least_active_go_first_and_among_equals_the_lower_number() -> None:
    activations = torch.tensor([0.5, -0.1, 0.0, -0.1, 0.0, 2.0], dtype=torch.float64)
    assert least_active(activations, 4).tolist() == [1, 3, 2, 4]
    assert least_active(torch.zeros(5000), 3).tolist() == [0, 1, 2]


def test_overlap_by_means_and_by_samples_of_a_case_done_by_hand() -> None:
    sums = pair_sums(CLEAN, POISONED)
    # means > 0: clean 0 and 1; poisoned 0, 1 and 2 (the last neuron has 0 and -1/6)
    assert overlap_of_means(sums) == Overlap(2, 3)
    assert overlap_of_means(sums).only_poisoned == 1
    # samples: both 2 + 1 + 1 of poisoned 3 + 3 + 3
    assert overlap_of_samples(sums) == Overlap(4, 9)
    assert overlap_of_samples(sums, slice(0, 1)) == Overlap(2, 2)
    assert overlap_of_means(sums, slice(2, 4)) == Overlap(0, 1)


def test_sums_of_batches_are_the_sums_of_all() -> None:
    parts = [pair_sums(CLEAN[rows], POISONED[rows]) for rows in (slice(0, 1), slice(1, 3))]
    assert torch.equal(parts[0] + parts[1], pair_sums(CLEAN, POISONED))


def test_the_overlap_of_nothing_is_undefined() -> None:
    sums = pair_sums(CLEAN, torch.zeros_like(POISONED))
    assert overlap_of_means(sums).value is None
    assert overlap_of_samples(sums).value is None
    assert Overlap(1, 4).value == 0.25
