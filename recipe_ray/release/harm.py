"""Whether purifying harms a model: judged before it, by what its head knows, and after it.

RECIPE's norm pulls weights towards zero, and the pre-training loss holds those that are needed. A
masked-LM head that knows no more than word frequencies holds nothing: six layers of MiniLM with
such a head lost 23 points of accuracy, while its loss did not even rise.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from recipe_ray.base.errors import HarmError
from recipe_ray.data.feed import LocalFeed
from recipe_ray.data.sources import Locations
from recipe_ray.data.unigram import WordLoss
from recipe_ray.defenses.rule import ALLOWED_LOSS_RISE
from recipe_ray.learn.runtime import LocalRuntime
from recipe_ray.release.studied_drift import studied_drift
from recipe_ray.stages.learnable import FEW_USABLE, USABLE_SHARE
from recipe_ray.stages.purify import PurifyStage
from recipe_ray.stages.stage import Context
from recipe_ray.stages.store import Store

# nats a masked token by which a head has to be better than word frequencies
MARGIN = 0.5
# and by so many standard errors of their loss, which is what tells on few held-out tokens
ERRORS = 2.0


def check_head(
    stage: PurifyStage, store: Store, locations: Locations, *, accept: bool
) -> tuple[str | None, str | None]:
    """Compare the held-out loss with that of word frequencies, before anything is purified.

    Returns what to say on screen and, where harm was accepted, the warning for the card; both None
    for a model without words. Raises HarmError for a head that is no better, unless `accept`.
    """
    with tempfile.TemporaryDirectory(prefix="recipe-ray-") as folder:
        where = Context(store, LocalFeed(locations), locations, LocalRuntime(), Path(folder))
        loss, words = stage.look_before(where)
    if words is None:
        return None, None
    unit = stage.model.loss_unit
    said = f"held-out loss {loss:.2f} {unit}; word frequencies alone give {words.mean:.2f}"
    if loss <= words.mean - needed_margin(words):
        return said, None
    problem = _problem(loss, words, unit, fitted=stage.parent is not None)
    if not accept:
        raise HarmError(f"{problem}. {_WHAT_TO_DO}")
    return said, f"{problem}. It was purified all the same, as --accept-harm asked for"


def needed_margin(words: WordLoss) -> float:
    """Return by how many nats a head must be better than word frequencies."""
    return max(MARGIN, ERRORS * words.error)


def after_warnings(measured: dict[str, float], unit: str, reads: str) -> list[str]:
    """Return warnings about what purifying did, and about the data it was done with."""
    found = []
    rise = measured["held_out_loss.after"] - measured["held_out_loss.before"]
    if rise > ALLOWED_LOSS_RISE:
        found.append(
            f"the held-out pre-training loss rose by {rise:.2f} {unit}, more than the "
            f"{ALLOWED_LOSS_RISE} the rule allows: the model is probably damaged; {_GENTLER}"
        )
    studied, drift = studied_drift(reads), measured["drift"]
    if studied is not None and drift > studied:
        found.append(
            f"clean representations drifted by {drift:.3f}, more than the {studied:g} up to which "
            f"no harm is known on {reads}s: accuracy after fine-tuning may have suffered; compare "
            f"both models on a task of yours; {_GENTLER}"
        )
    return [*found, *data_warnings(measured)]


def data_warnings(measured: Mapping[str, float]) -> list[str]:
    """Return a warning where few of the data that a stage trained on were usable."""
    share = measured.get(USABLE_SHARE, 1.0)
    if share >= FEW_USABLE:
        return []
    return [
        f"only {share:.1%} of the auxiliary data are usable, fewer than {FEW_USABLE:.0%}: they may "
        "not be in the model's language, and then nothing held what it knows of its own"
    ]


_GENTLER = "try a lower fit.learning_rate, fewer fit.steps or a lower weight_factor (--set)"
_WHAT_TO_DO = (
    "Nothing was purified. Give more auxiliary text (a head needs tens of thousands of sentences), "
    "or text like the model's own; give the checkpoint with its own masked-LM head, if there is "
    "one; or go on with --accept-harm, and compare both models on a task of yours"
)


def _problem(loss: float, words: WordLoss, unit: str, *, fitted: bool) -> str:
    head = "the masked-LM head that was fitted" if fitted else "the masked-LM head of MODEL"
    text = (
        f"{head} knows hardly more than word frequencies: held-out loss {loss:.2f} {unit}, and "
        f"frequencies alone give {words.mean:.2f} (it has to be {needed_margin(words):.2f} lower). "
        "So nothing would hold the model while its weights shrink, and it would lose accuracy "
        "without its loss showing it"
    )
    if loss > 2 * words.mean and not fitted:
        text += (
            "; a loss this high is also what scaled embeddings leave behind, which NeuBA's script "
            "makes of its triggers"
        )
    return text
