"""Packed batches compute what transformers' padded eager attention computes."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM

from recipe_ray.data.rows import TokenRows
from recipe_ray.learn.neuron_stats import outputs_of
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.models.text.minilm import MiniLM, MiniLMRoberta
from recipe_ray.models.text.packed import PackedBatch, pack
from recipe_ray.models.text.packed_encoder import _Attention, _by_torch, layout, rows_of

LENGTHS = [64, 41, 33, 33, 17, 16, 16, 9, 5, 3]


def random_rows(lengths: list[int]) -> TokenRows:
    generator = np.random.default_rng(0)
    return TokenRows.of([[101, *generator.integers(999, 30000, n - 2), 102] for n in lengths])


def padded(model: Any, batch: PackedBatch, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return transformers' last states [T, H] and logits [T, V] of the unpadded tokens."""
    pad = model.config.pad_token_id
    ids = torch.nn.utils.rnn.pad_sequence(
        batch.tokens[: batch.num_tokens].split(lengths), True, pad
    )
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    out = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    return out.hidden_states[-1][mask], out.logits[mask]


@pytest.fixture(scope="module", params=[MiniLM, MiniLMRoberta])
def ptm(request: pytest.FixtureRequest) -> BertPTM:
    loaded: BertPTM = request.param(layers=2).load()
    loaded.module.eval()
    return loaded


def test_hidden_states_loss_and_gradients_equal_those_of_padded_eager(ptm: BertPTM) -> None:
    config = copy.deepcopy(ptm.module.config)
    model = AutoModelForMaskedLM.from_config(config, attn_implementation="eager").eval()
    model.load_state_dict(ptm.module.state_dict(), strict=False)
    rows = random_rows(LENGTHS)
    batch = ptm.pretraining_collate(0)(rows, 0)
    assert batch.where is not None

    hidden = ptm.hidden(ptm.module, batch)
    ours = ptm.masked_lm(ptm.module, ptm.hidden(ptm.module, batch, batch.where), batch.targets)
    expected_hidden, logits = padded(model, batch, LENGTHS)
    expected = F.cross_entropy(logits[batch.where], batch.targets, reduction="sum")
    torch.testing.assert_close(hidden, expected_hidden, rtol=0, atol=1e-5)
    assert ours.count == len(batch.where)
    assert ours.total.item() == pytest.approx(expected.item(), rel=1e-5)

    ptm.module.zero_grad()
    ours.total.backward()
    expected.backward()
    mine = {n: p.grad for n, p in ptm.module.named_parameters() if p.grad is not None}
    theirs = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        tolerance = 1e-5 * float(gradient.abs().max()) + 1e-5
        torch.testing.assert_close(mine[name], gradient, rtol=0, atol=tolerance, msg=name)


@pytest.mark.parametrize("where", [[], [0], [3, 64, 64, 5, 2], list(range(0, 237, 2))[::-1]])
def test_some_tokens_get_the_states_and_gradients_they_get_among_all(
    ptm: BertPTM, where: list[int]
) -> None:
    batch, at = pack(random_rows(LENGTHS)), torch.tensor(where, dtype=torch.int64)
    weights = [p for p in ptm.module.base_model.encoder.parameters() if p.requires_grad]
    factors = torch.randn(len(at), ptm.hidden_size)
    found = ptm.hidden(ptm.module, batch, at)
    expected = ptm.hidden(ptm.module, batch)[at]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    mine = torch.autograd.grad((found * factors).sum(), weights)
    theirs = torch.autograd.grad((expected * factors).sum(), weights)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_last_layer_feeds_forward_no_other_tokens_than_asked_for(ptm: BertPTM) -> None:
    batch = pack(random_rows(LENGTHS))
    before, last = (layer.intermediate for layer in ptm.module.base_model.encoder.layer)
    with outputs_of([before, last], lambda output: torch.tensor(output.shape[:-1].numel())) as seen:
        ptm.hidden(ptm.module, batch, batch.first)
    assert [int(seen[0]), int(seen[1])] == [len(batch.tokens), len(LENGTHS)]


def test_a_text_is_the_same_alone_and_in_company(ptm: BertPTM) -> None:
    rows = random_rows(LENGTHS)
    together = ptm.hidden(ptm.module, pack(rows)).split(LENGTHS)
    for number in (0, 4, 9):
        alone = ptm.hidden(ptm.module, pack(rows.take(np.array([number]))))
        torch.testing.assert_close(together[number], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[::-1], [16, 16], [5, 40, 7, 64]])
def test_own_attention_equals_torchs_with_gradients(lengths: list[int]) -> None:
    torch.manual_seed(0)
    batch = pack(random_rows(lengths))
    q, k, v = (torch.randn(len(batch.tokens), 3, 8, requires_grad=True) for _ in range(3))
    at = layout(batch.groups, 3, torch.float32)
    ours = _Attention.apply(*(x.reshape(-1, 8) for x in (q, k, v)), at, 0.0, 0.3).view(q.shape)
    expected = _by_torch(q, k, v, at, 0.0, 0.3)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn_like(ours)
    mine = torch.autograd.grad((ours * weights).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("where", [None, [0, 2, 7]])
def test_attention_dropout_gradient_is_that_of_the_drawn_mask(where: list[int] | None) -> None:
    batch = pack(random_rows([6, 4, 54]))
    assert len(batch.tokens) == 64
    at = layout(batch.groups, 2, torch.float64)
    if where is not None:
        at = at.asked_by(rows_of(batch.groups_at(torch.tensor(where)), 2))
    inputs = [
        torch.randn(count, 2, dtype=torch.float64, requires_grad=True)
        for count in (len(at.queries.flat), 128, 128)
    ]

    def attend(*qkv: Tensor) -> Tensor:
        torch.manual_seed(3)
        out: Tensor = _Attention.apply(*qkv, at, 0.4, 0.5)
        return out

    assert torch.autograd.gradcheck(attend, inputs)


def test_bf16_states_stay_near_the_fp32_ones(ptm: BertPTM) -> None:
    batch = pack(random_rows(LENGTHS))
    exact = ptm.hidden(ptm.module, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = ptm.hidden(ptm.module, batch)
    assert rough.dtype == torch.bfloat16
    assert F.cosine_similarity(rough.float(), exact).min() > 0.999
