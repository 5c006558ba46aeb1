"""Whether two PTMs are of one make, so that the weights of one mean the same in the other."""

from typing import Any

from recipe_ray.base.errors import ModelError

# what shapes do not tell
_SETTINGS = ("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "pad_token_id")


def check_same_make(here: Any, there: Any) -> None:
    """Raise ModelError, naming the first difference, unless both have one make.

    Each has a `module` with a transformers config, and a `tokenizer`.
    """
    own, other = _make(here.module), _make(there.module)
    for part in own | other:
        if own.get(part) != other.get(part):
            raise ModelError(
                f"weights of another architecture: {part} is {other.get(part, 'absent')}, and "
                f"{own.get(part, 'absent')} in the model that is to take them over"
            )
    mine, theirs = here.tokenizer.get_vocab(), there.tokenizer.get_vocab()
    different = sorted(w for w in mine | theirs if mine.get(w) != theirs.get(w))
    if different:
        raise ModelError(
            f"weights of another vocabulary: {len(different)} tokens differ, such as "
            f"{different[0]!r}"
        )


def _make(module: Any) -> dict[str, Any]:
    shapes = {name: list(weight.shape) for name, weight in module.named_parameters()}
    return {name: getattr(module.config, name) for name in _SETTINGS} | shapes
