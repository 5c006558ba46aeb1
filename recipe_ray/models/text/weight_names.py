"""Which tensor of a checkpoint is which weight of a masked LM, as transformers decides it.

The rules are those of transformers 5 (`core_model_loading.rename_source_key`, `tie_weights`); where
it would choose between tensors that disagree, the checkpoint is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recipe_ray.base.errors import ModelError
from recipe_ray.base.loading import agree
from recipe_ray.models.text.architectures import ARCHITECTURES, POOLER

_BASE_PARTS = ("embeddings", "encoder", POOLER)


def named_weights(kind: str, weights: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Return weights by the names they have in today's masked LM of an architecture.

    The encoder's may lack its prefix, LayerNorm's may be called gamma and beta. Raises ModelError
    where two names mean one weight and their tensors differ.
    """
    architecture = ARCHITECTURES[kind]
    prefix = f"{architecture.masked_lm.base_model_prefix}."
    found: dict[str, str] = {}
    for name in weights:
        today = _today(name, prefix, f"{architecture.head}.")
        other = found.setdefault(today, name)
        if other != name and not agree(weights[other], weights[name]):
            raise ModelError(
                f"{where}: {other!r} and {name!r} are both {today!r}, and they differ; keep the "
                "one that is meant"
            )
    return {today: weights[name] for today, name in found.items()}


def tied_names(module: Any) -> dict[str, str]:
    """Return which weights are another one by the config: the decoder is the word embeddings."""
    tied: dict[str, str] = module.get_expanded_tied_weights_keys()
    return tied


def with_tied(weights: Mapping[str, Tensor], tied: Mapping[str, str]) -> dict[str, Tensor]:
    """Return weights with each tied one under its source's name, once.

    One that is there under the other name only is moved; both stay where they differ.
    """
    whole = dict(weights)
    for target, source in tied.items():
        if target in whole and source not in whole:
            whole[source] = whole.pop(target)
        elif target in whole and agree(whole[target], whole[source]):
            del whole[target]
    return whole


def untie(module: Any, names: Mapping[str, str], weights: Mapping[str, Tensor]) -> list[str]:
    """Give a module weights of its own where a checkpoint's differ although the config ties them.

    transformers keeps both then, too. Returns their names.
    """
    apart = [name for name in names if name in weights]
    for name in apart:
        parent, _, leaf = name.rpartition(".")
        own = nn.Parameter(module.get_parameter(name).detach().clone())
        setattr(module.get_submodule(parent), leaf, own)
        module.all_tied_weights_keys.pop(name, None)
    return apart


def _today(name: str, prefix: str, head: str) -> str:
    # checkpoints converted from TensorFlow call LayerNorm's parameters gamma and beta
    modern = name.replace("LayerNorm.gamma", "LayerNorm.weight")
    modern = modern.replace("LayerNorm.beta", "LayerNorm.bias")
    if modern.partition(".")[0] in _BASE_PARTS:
        return prefix + modern
    return modern.removeprefix(prefix) if modern.startswith(prefix + head) else modern
