"""Own dropout and vocabulary cross-entropy against torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recipe_ray.learn.kernels import (
    Dropout,
    keep_factors,
    linear_cross_entropy,
    use_fast_dropout,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_the_given_share_and_scales_the_rest(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    factors = keep_factors(torch.Size((999, 1001)), p, dtype)
    assert factors.dtype == dtype
    assert (factors == 0).float().mean() == pytest.approx(p, abs=0.002)
    assert set(factors.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p), dtype=dtype).item()}


def test_dropout_is_a_function_of_torchs_seed() -> None:
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        dropout = Dropout(0.1)
        return torch.stack([dropout(torch.ones(50, 7)), dropout(torch.ones(50, 7))])

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    first, second = draw(1)
    assert not torch.equal(first, second)


def test_dropout_does_nothing_in_evaluation_and_its_gradient_is_its_mask() -> None:
    dropout = Dropout(0.3)
    x = torch.ones(64, 5, requires_grad=True)
    y = dropout(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert dropout.eval()(x) is x


def test_use_fast_dropout_reaches_nested_modules() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.25)))
    use_fast_dropout(module)
    assert isinstance(module[1][0], Dropout)
    assert module[1][0].p == 0.25


@pytest.mark.parametrize("bias", [True, False])
def test_linear_cross_entropy_equals_torchs_with_all_gradients(bias: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(21, 16, dtype=torch.float64, requires_grad=True)
    weight = (torch.randn(53, 16, dtype=torch.float64) * 0.5).requires_grad_()
    offset = torch.randn(53, dtype=torch.float64, requires_grad=True) if bias else None
    targets = torch.randint(53, (21,))
    inputs = [t for t in (hidden, weight, offset) if t is not None]

    def both(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        cast = [None if t is None else t.to(dtype) for t in (hidden, weight, offset)]
        plain = F.cross_entropy(F.linear(*cast), targets, reduction="sum")
        return 3.0 * linear_cross_entropy(*cast, targets), 3.0 * plain

    ours, plain = both(torch.float32)
    assert ours.item() == pytest.approx(plain.item(), rel=1e-6)
    for mine, theirs in zip(
        torch.autograd.grad(ours, inputs), torch.autograd.grad(plain, inputs), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_linear_cross_entropy_without_masked_tokens_is_zero_with_zero_gradients() -> None:
    hidden = torch.zeros(0, 8, requires_grad=True)
    weight = torch.randn(5, 8, requires_grad=True)
    loss = linear_cross_entropy(hidden, weight, None, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(weight.grad, torch.zeros(5, 8))


def test_linear_cross_entropy_under_autocast_is_near_the_exact_loss() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 64, requires_grad=True), torch.randn(300, 64) * 0.2
    targets = torch.randint(300, (40,))
    exact = linear_cross_entropy(hidden, weight, None, targets)
    with torch.autocast("cpu", torch.bfloat16):
        rough = linear_cross_entropy(hidden, weight, None, targets)
    (gradient,) = torch.autograd.grad(rough, hidden)
    assert gradient.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=5e-3)
