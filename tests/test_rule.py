"""The rule that chooses RECIPE's settings, at its bounds; the warning that judges the result."""

from typing import Any

import pytest
import torch
from samples import raised_by, tiny_ptm

from recipe_ray.base.errors import ModelError
from recipe_ray.defenses.rule import (
    ALLOWED_LOSS_RISE,
    MAX_RATE,
    MIN_RATE,
    MIN_STEPS,
    TRAVEL,
    choose,
    weight_rms,
)
from recipe_ray.release.presets import PRESETS
from recipe_ray.release.purification import loss_warnings

LAYERS = ("ffn_in",)


def scaled(factor: float) -> Any:
    """Return a PTM whose intermediate weights are `factor` times a random BERT's."""
    ptm = tiny_ptm()
    with torch.no_grad():
        for weight in ptm.weight_group("ffn_in"):
            weight.mul_(factor)
    return ptm


@pytest.mark.parametrize("factor", [0.3, 1.0, 30.0])
def test_a_weight_can_go_a_fixed_multiple_of_the_weights_size(factor: float) -> None:
    ptm = scaled(factor)
    fit = choose(ptm, 20_000, LAYERS, "weights").recipe.fit
    assert fit.steps is not None
    way = fit.learning_rate * fit.steps / 2
    assert way == pytest.approx(TRAVEL * weight_rms(ptm, LAYERS), rel=0.05)
    assert MIN_RATE <= fit.learning_rate <= MAX_RATE


def test_few_samples_are_gone_through_often_and_large_weights_get_more_steps() -> None:
    few = choose(scaled(1.0), 50, LAYERS, "weights").recipe.fit
    assert few.steps == MIN_STEPS
    long = choose(scaled(30.0), 50, LAYERS, "weights").recipe.fit
    assert long.learning_rate == MAX_RATE
    assert long.steps is not None
    assert long.steps > MIN_STEPS


def test_tiny_weights_still_get_a_learning_rate_that_moves_them() -> None:
    fit = choose(scaled(1e-6), 20_000, LAYERS, "weights").recipe.fit
    assert fit.learning_rate == MIN_RATE


@pytest.mark.parametrize(("factor", "said"), [(0.0, "are zero"), (float("nan"), "not finite")])
def test_weights_that_say_nothing_are_the_models_fault(factor: float, said: str) -> None:
    with pytest.raises(ModelError):
        choose(scaled(factor), 100, LAYERS, "weights")
    assert said in raised_by(lambda: choose(scaled(factor), 100, LAYERS, "weights"))


def test_one_huge_weight_cannot_make_purifying_take_for_ever() -> None:
    ptm: Any = tiny_ptm()
    with torch.no_grad():
        ptm.weight_group("ffn_in")[0].view(-1)[0] = 1e6
    said = raised_by(lambda: choose(ptm, 100, LAYERS, "weights"))
    assert "up to 1e+06" in said
    assert "--preset" in said


def test_a_held_out_loss_is_warned_of_only_above_the_allowed_rise() -> None:
    def after(rise: float) -> list[str]:
        measured = {"held_out_loss.before": 2.0, "held_out_loss.after": 2.0 + rise}
        return loss_warnings(measured, "nats")

    assert after(ALLOWED_LOSS_RISE - 0.01) == after(-1.0) == []
    (warning,) = after(ALLOWED_LOSS_RISE + 0.01)
    assert "rose by 0.51 nats" in warning
    assert "probably damaged" in warning


def test_the_presets_are_the_papers_settings() -> None:
    # docs/method.md section 2; learning rate and the rest are the script's
    epochs = {"paper-por": 4, "paper-badpre": 8, "paper-neuba": 10, "paper-roberta": 10}
    assert {name: recipe.fit.epochs for name, recipe in PRESETS.items()} == epochs
    for name, recipe in PRESETS.items():
        fit = recipe.fit
        assert (fit.learning_rate, fit.batch_size, fit.max_length) == (2e-5, 32, 64)
        assert (fit.optimizer, fit.precision, fit.weight_decay) == ("adamw", "fp32", 0.0)
        assert (fit.schedule, fit.warmup_share, fit.clip_norm) == ("linear", 0.0, 1.0)
        assert (recipe.weight_factor, recipe.pretraining_weight) == (1.0, 1.0)
        wide = name == "paper-roberta"
        assert recipe.layers == (("ffn_in", "query") if wide else ("ffn_in",))
        assert recipe.trainable == ("all" if wide else "weights")
