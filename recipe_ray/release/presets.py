"""The paper's settings of RECIPE for BERT and RoBERTa (docs/method.md section 2), by name."""

from recipe_ray.base.errors import SpecError, unknown
from recipe_ray.defenses.recipe import Recipe
from recipe_ray.learn.optim import FitSpec

_SCRIPT = FitSpec(epochs=4, batch_size=32, learning_rate=2e-5, max_length=64, precision="fp32")

PRESETS = {
    "paper-por": Recipe(fit=_SCRIPT),
    "paper-badpre": Recipe(fit=_SCRIPT.revised(epochs=8)),
    "paper-neuba": Recipe(fit=_SCRIPT.revised(epochs=10)),
    "paper-roberta": Recipe(
        layers=("ffn_in", "query"), trainable="all", fit=_SCRIPT.revised(epochs=10)
    ),
}


def preset(name: str) -> Recipe:
    """Return a preset; raise SpecError with the nearest name for an unknown one."""
    if name not in PRESETS:
        raise SpecError("--preset: " + unknown("preset", name, PRESETS))
    return PRESETS[name]
