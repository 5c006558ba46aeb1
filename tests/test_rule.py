"""The rule that chooses RECIPE's settings, at its bounds; the warning that judges the result."""

from typing import Any

import pytest
import torch
from samples import raised_by, tiny_ptm

from recipe_ray.api.harm import data_warnings, harm_warnings
from recipe_ray.api.purification import PRESETS, settings
from recipe_ray.base.changes import set_fields
from recipe_ray.base.errors import ModelError
from recipe_ray.defenses.recipe import Recipe
from recipe_ray.defenses.rule import (
    ALLOWED_LOSS_RISE,
    MAX_RATE,
    MIN_RATE,
    MIN_STEPS,
    TRAVEL,
    Choice,
    choose,
    way_in_rms,
    weight_rms,
)

LAYERS = ("ffn_in",)
NARROW = Recipe(layers=LAYERS)


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
    fit = choose(ptm, 20_000, NARROW).recipe.fit
    assert fit.steps is not None
    way = fit.learning_rate * fit.steps / 2
    assert way == pytest.approx(TRAVEL * weight_rms(ptm, LAYERS), rel=0.05)
    assert MIN_RATE <= fit.learning_rate <= MAX_RATE


def test_few_samples_are_gone_through_often_and_large_weights_get_more_steps() -> None:
    few = choose(scaled(1.0), 50, NARROW).recipe.fit
    assert few.steps == MIN_STEPS
    long = choose(scaled(30.0), 50, NARROW).recipe.fit
    assert long.learning_rate == MAX_RATE
    assert long.steps is not None
    assert long.steps > MIN_STEPS


def test_tiny_weights_still_get_a_learning_rate_that_moves_them() -> None:
    fit = choose(scaled(1e-6), 20_000, NARROW).recipe.fit
    assert fit.learning_rate == MIN_RATE


@pytest.mark.parametrize(("factor", "said"), [(0.0, "are zero"), (float("nan"), "not finite")])
def test_weights_that_say_nothing_are_the_models_fault(factor: float, said: str) -> None:
    with pytest.raises(ModelError):
        choose(scaled(factor), 100, NARROW)
    assert said in raised_by(lambda: choose(scaled(factor), 100, NARROW))


def test_one_huge_weight_cannot_make_purifying_take_for_ever() -> None:
    ptm: Any = tiny_ptm()
    with torch.no_grad():
        ptm.weight_group("ffn_in")[0].view(-1)[0] = 1e6
    said = raised_by(lambda: choose(ptm, 100, NARROW))
    assert "up to 1e+06" in said
    assert "--preset" in said


@pytest.mark.parametrize(
    "changes",
    [
        ["fit.steps=2000"],
        ["fit.learning_rate=5e-5"],
        ["fit={learning_rate: 5e-5, max_length: 32}"],
        ["fit.learning_rate=2e-5"],  # the class's own default, but set
        ["fit.epochs=3"],
        ["fit.batch_size=1"],
        ["fit.batch_size=256", "fit.steps=null"],
        ["fit.schedule=constant"],
        ["fit.steps=1500", "fit.warmup_share=0.2"],
        ["trainable=all", "fit.steps=900", "fit.steps=1900"],
    ],
)
def test_what_is_set_is_kept_and_the_rest_follows_the_rule(changes: list[str]) -> None:
    ptm: Any = tiny_ptm()
    choice = settings(ptm, 19_000, None, changes)
    for name, value in [change.split("=", 1) for change in changes if "{" not in change][-1:]:
        owner: Any = choice.recipe.fit if name.startswith("fit.") else choice.recipe
        kept = str(getattr(owner, name.removeprefix("fit.")))
        assert value == "null" or float_or(value) == float_or(kept)
    assert way_in_rms(ptm, 19_000, choice.recipe) == pytest.approx(TRAVEL, rel=0.05)
    assert choice.doubts == ()
    assert f"at {choice.recipe.fit.learning_rate:g}, " in choice.reason
    assert "is 1.4 x RMS" in choice.reason


def float_or(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["fit.steps=2"], "under half of the 1.4 x RMS"),
        (["fit.epochs=0.01"], "under half of the 1.4 x RMS"),
        (["fit.steps=1000", "fit.learning_rate=1e-9"], "under half of the 1.4 x RMS"),
        (["fit.optimizer=sgd"], "how far the weights go is not known"),
        (["weight_factor=0"], "a backdoor is probably left"),
        (["weight_factor=1e-9"], "a backdoor is probably left"),
        (["fit.epsilon=1"], "so large, or fit.clip_norm so small, that AdamW hardly moves them"),
        (["fit.clip_norm=1e-9"], "so small, that AdamW hardly moves them"),
        (["fit.warmup_share=0.999", "fit.learning_rate=1e-6", "fit.steps=9"], "under half"),
        (["layers=[query]"], "layers leaves out ffn_in, ffn_out, attention_out, key, value: "),
        (["layers=[ffn_in,ffn_out,query,key]"], "layers leaves out attention_out, value: "),
    ],
)
def test_settings_that_leave_a_backdoor_are_doubted(changes: list[str], said: str) -> None:
    ptm: Any = tiny_ptm()
    (doubt,) = settings(ptm, 19_000, None, changes).doubts
    assert said in doubt


@pytest.mark.parametrize(
    ("change", "said"),
    [("fit.learning_rate=1e-9", "steps, more than 20,000"), ("fit.epochs=0", "purifies nothing")],
)
def test_settings_that_end_never_or_at_once_are_refused(change: str, said: str) -> None:
    assert said in raised_by(lambda: settings(tiny_ptm(), 19_000, None, [change]))


def preset(num_samples: int, *changes: str) -> Choice:
    return settings(scaled(1.0), num_samples, "paper-neuba", list(changes))


def test_a_preset_is_doubted_where_it_goes_nowhere_near_as_far_as_in_the_paper() -> None:
    # of a model with few layers the rule penalises more than the paper did of BERT
    (left_out,) = preset(80_000).doubts
    assert left_out.startswith("layers leaves out ffn_out")
    assert preset(80_000, "weight_factor=0.5").doubts == (left_out,)
    assert "of the 0.6 x RMS" in preset(300).doubts[0]  # untouched, but hardly a step
    assert "of the 1.4 x RMS" in preset(80_000, "fit.epochs=0.4").doubts[0]
    assert preset(80_000, "fit={epochs: 10}").recipe.fit.precision == "fp32"


def test_a_field_set_to_null_is_not_set() -> None:
    assert set_fields(["fit={steps: 5, clip_norm: null}", "layers=[query]"]) == {
        "fit.steps",
        "layers",
    }


def test_a_held_out_loss_is_warned_of_only_above_the_allowed_rise() -> None:
    def after(rise: float) -> list[str]:
        measured = {"held_out_loss.before": 2.0, "held_out_loss.after": 2.0 + rise}
        return harm_warnings({**measured, "drift": 0.0}, "nats", "text")

    assert after(ALLOWED_LOSS_RISE - 0.01) == after(-1.0) == []
    (warning,) = after(ALLOWED_LOSS_RISE + 0.01)
    assert "rose by 0.51 nats" in warning
    assert "probably damaged" in warning


def test_a_drift_beyond_what_is_known_to_be_harmless_is_warned_of() -> None:
    def after(drift: float, reads: str) -> list[str]:
        measured = {"held_out_loss.before": 7.03, "held_out_loss.after": 6.98, "drift": drift}
        return harm_warnings(measured, "nats", reads)

    assert after(0.0055, "text") == after(0.22, "image") == []
    (warning,) = after(0.22, "text")  # MiniLM's six layers, 23 points of accuracy lost
    assert "the drift of clean representations is 0.220" in warning


def test_features_over_fewer_directions_than_is_known_to_be_harmless_are_warned_of() -> None:
    def after(rank: float, reads: str) -> list[str]:
        measured = {"held_out_loss.before": 7.03, "held_out_loss.after": 6.98, "drift": 0.042}
        measured |= {"guard.effective_rank.before": 100.0, "guard.effective_rank.after": rank}
        return harm_warnings(measured, "nats", reads)

    assert after(99.0, "text") == after(45.5, "image") == []
    # of the study: RECIPE held by states, which lost 31 points on AG News at a drift of 0.042
    (warning,) = after(45.5, "text")
    assert "the share of the features' effective rank that was lost is 0.545" in warning
    (few,) = data_warnings({"usable_share": 0.6})
    assert "only 60.0% of the auxiliary data are usable" in few


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
