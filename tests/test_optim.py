"""What the optimisers make of a FitSpec: decay, momentum, epsilon, and the precision of a pass."""

from typing import Any

import pytest
import torch
from stub_model import Pairs, StubBatches, stub
from torch import Tensor, nn

from recipe_ray.learn import precision as precisions
from recipe_ray.learn.loop import fit
from recipe_ray.learn.objective import Terms, mean_squared
from recipe_ray.learn.optim import FitSpec, build_optimizer
from recipe_ray.learn.runtime import LocalRuntime

RATE = 0.1


def moved(parameter: Tensor, gradient: float, steps: int = 1, **fields: Any) -> Tensor:
    """Return how far a parameter goes under a gradient that is the same in every step."""
    held, start = nn.Parameter(parameter.clone()), parameter.clone()
    optimizer = build_optimizer([held], FitSpec(learning_rate=RATE, **fields))
    for _ in range(steps):
        held.grad = torch.full_like(held, gradient)
        optimizer.step()
    return start - held.detach()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_shrinks_matrices_and_spares_vectors(optimizer: str) -> None:
    how: dict[str, Any] = {"optimizer": optimizer, "weight_decay": 0.5}
    matrix, vector = torch.full((2, 3), 4.0), torch.full((3,), 4.0)
    torch.testing.assert_close(moved(matrix, 0.0, **how), torch.full((2, 3), RATE * 0.5 * 4))
    assert torch.equal(moved(vector, 0.0, **how), torch.zeros(3))
    assert torch.equal(moved(matrix, 0.0, optimizer=optimizer), torch.zeros(2, 3))


def test_momentum_carries_the_first_step_into_the_second() -> None:
    start = torch.zeros(1)
    plain = moved(start, 1.0, steps=2, optimizer="sgd", momentum=0.0)
    assert plain.item() == pytest.approx(2 * RATE)
    carried = moved(start, 1.0, steps=2, optimizer="sgd", momentum=0.5)
    assert carried.item() == pytest.approx(RATE + RATE * 1.5)


def test_epsilon_is_what_adam_adds_to_the_root_of_the_second_moment() -> None:
    # with an unchanging gradient of 1 both moments are 1 after their correction
    start = torch.zeros(1)
    assert moved(start, 1.0, optimizer="adamw", epsilon=1e-8).item() == pytest.approx(RATE)
    assert moved(start, 1.0, optimizer="adamw", epsilon=3.0).item() == pytest.approx(RATE / 4)


def test_frozen_parameters_are_left_out() -> None:
    free, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)
    groups = build_optimizer([free, frozen], FitSpec()).param_groups
    assert [parameter for group in groups for parameter in group["params"]] == [free]


@pytest.mark.parametrize(
    ("precision", "has_bf16", "dtype"),
    [
        ("fp32", True, torch.float32),
        ("bf16", True, torch.bfloat16),
        ("bf16", False, torch.float32),  # emulated it would take 40 times as long
    ],
)
def test_a_forward_pass_runs_in_the_precision_asked_for_where_the_device_has_it(
    precision: Any,
    has_bf16: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(precisions, "_has_bf16", lambda device: has_bf16)
    frozen, seen = stub(), set()
    frozen[0].requires_grad_(False)

    def objective(module: Any, batch: Pairs) -> Terms:
        out = module(batch.x)
        seen.update({out.dtype, module[0].weight.dtype})
        return {"mse": mean_squared(out, batch.y)}

    spec = FitSpec(steps=1, precision=precision)
    with caplog.at_level("INFO", "recipe_ray"):
        fit(frozen, objective, StubBatches(), spec, LocalRuntime(), seed=0)
    assert seen == {dtype}
    assert ("trained in fp32" in caplog.text) is (precision == "bf16" and not has_bf16)
