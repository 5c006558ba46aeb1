"""Opening a BERT or RoBERTa folder: config, safetensors and tokenizer, never its code.

Tensors are assigned to weights as transformers 5 does it (`core_model_loading.rename_source_key`,
`tie_weights`). If transformers would choose between tensors that disagree, the checkpoint is
refused.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recipe_ray.base.errors import ModelError, unknown
from recipe_ray.base.loading import agree, check_shapes, read_json, read_weights, says
from recipe_ray.models.config_fields import check_depth, config_of, outline, rounded
from recipe_ray.models.contents import check_readable
from recipe_ray.models.text.bert import ARCHITECTURES, POOLER, BertPTM
from recipe_ray.models.text.packed_encoder import ATTENTION
from recipe_ray.models.text.tokenizer import check_tokens, load_tokenizer

_LEGACY = re.compile("LayerNorm.(gamma|beta)")  # transformers, too, takes any sign for the dot
_TODAY = {"gamma": "weight", "beta": "bias"}
_BASE_PARTS = ("embeddings", "encoder", POOLER)


def named_weights(kind: str, weights: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Return weights by the names they have in today's masked LM of an architecture.

    The encoder's may lack its prefix; LayerNorm's may be called gamma and beta. Raises ModelError
    if two names mean one weight and their tensors differ.
    """
    architecture = ARCHITECTURES[kind]
    base = architecture.masked_lm.base_model_prefix
    found: dict[str, str] = {}
    for name in weights:
        today = _today(name, base, f"{architecture.head}.")
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
    """Return weights with each tied one only once, under its source's name.

    One that is there only under the other name is moved; if they differ, both stay.
    """
    whole = dict(weights)
    for target, source in tied.items():
        if target in whole and source not in whole:
            whole[source] = whole.pop(target)
        elif target in whole and agree(whole[target], whole[source]):
            del whole[target]
    return whole


def untie(module: Any, names: Mapping[str, str], weights: Mapping[str, Tensor]) -> list[str]:
    """Give a module weights of its own if a checkpoint's differ although the config ties them.

    transformers keeps both then, too. Returns their names.
    """
    apart = [name for name in names if name in weights]
    for name in apart:
        parent, _, leaf = name.rpartition(".")
        own = nn.Parameter(module.get_parameter(name).detach().clone())
        setattr(module.get_submodule(parent), leaf, own)
        module.all_tied_weights_keys.pop(name, None)
    return apart


def _today(name: str, base: str, head: str) -> str:
    # checkpoints converted from TensorFlow call LayerNorm's parameters gamma and beta
    modern = _LEGACY.sub(lambda found: f"LayerNorm.{_TODAY[found[1]]}", name, count=1)
    # transformers takes off a prefix by its length, whatever sign follows, if a weight is left
    inner = modern[len(base) + 1 :] if modern.startswith(base) else ""
    if inner.startswith((f"{base}.", head)) or inner.partition(".")[0] in _BASE_PARTS:
        modern = inner
    return f"{base}.{modern}" if modern.partition(".")[0] in _BASE_PARTS else modern


log = logging.getLogger(__name__)

_SHORTEST = 3  # tokens of a text: a word between two special ones


def load_bert(
    folder: Path,
    *,
    allow_pickle: bool = False,
    allow_headless: bool = False,
    ignore_adapter: bool = False,
) -> BertPTM:
    """Load a BERT or RoBERTa folder; its code is never run.

    `allow_headless` accepts a checkpoint without a masked-LM head (it is then drawn from a fixed
    seed, for a pretrain stage to fit). Raises ModelError for another architecture, a missing
    tokenizer, weights that are missing or not what the config says, or an adapter next to them
    without `ignore_adapter`; UnsafeModelError for pickles without `allow_pickle`, or settings that
    name files to be read.
    """
    check_readable(folder, "bert")
    values = read_json(folder / "config.json")
    kind = str(values.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ModelError(f"{folder}: " + unknown("architecture (model_type)", kind, ARCHITECTURES))
    config = _config(kind, values, folder / "config.json")
    read = read_weights(folder, allow_pickle=allow_pickle, ignore_adapter=ignore_adapter)
    named = rounded(named_weights(kind, read, folder), values)
    weights = _fitting(config, named, folder, allow_headless=allow_headless)
    default = values.get("tokenizer_class") or ARCHITECTURES[kind].tokenizer
    tokenizer = load_tokenizer(folder, default)
    check_tokens(tokenizer, config.vocab_size, folder)
    module: Any = build_module(config)
    module.tie_weights()
    apart = untie(module, tied_names(module), weights)
    if apart:
        log.warning(
            "%s: its config ties %s to the embeddings, but the weights differ: they are kept "
            "apart, as in transformers",
            folder,
            ", ".join(apart),
        )
    module.load_state_dict(weights, strict=False)
    return BertPTM(module, tokenizer)


@dataclass(frozen=True)
class Parts:
    """Which parts of a PTM that are not its encoder a checkpoint has weights of."""

    head: bool
    pooler: bool


def parts_of(folder: Path, *, allow_pickle: bool = False, ignore_adapter: bool = False) -> Parts:
    """Return what a BERT or RoBERTa folder has besides its encoder: any of a head, all of a pooler.

    Another architecture counts as whole, which `load_bert` refuses.
    """
    kind = says(folder, "model_type")
    if kind not in ARCHITECTURES:
        return Parts(head=True, pooler=True)
    read = read_weights(folder, allow_pickle=allow_pickle, ignore_adapter=ignore_adapter)
    names = named_weights(kind, read, folder).keys()
    pooler = f"{ARCHITECTURES[kind].masked_lm.base_model_prefix}.{POOLER}.dense."
    return Parts(
        head=any(name.startswith(ARCHITECTURES[kind].head_weights) for name in names),
        pooler={f"{pooler}weight", f"{pooler}bias"} <= names,
    )


def build_module(config: Any) -> PreTrainedModel:
    """Return an untrained masked LM with pooler, its weights drawn from a fixed seed."""
    architecture = ARCHITECTURES[config.model_type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: Any = architecture.masked_lm(config)
        module.base_model.pooler = architecture.pooler(config)
        module.base_model.pooler.apply(module._init_weights)
    whole: PreTrainedModel = module
    return whole


def _config(kind: str, values: Mapping[str, Any], where: Path) -> Any:
    architecture = ARCHITECTURES[kind]
    config = config_of(architecture.config, values, where, attention=ATTENTION)
    for name in ("is_decoder", "add_cross_attention"):
        if getattr(config, name):
            raise ModelError(f"{where}: {name} is true; only encoders are read")
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":  # transformers no longer has others, and would take it for this
        raise ModelError(
            f"{where}: position_embedding_type is {shortened(positions)}; allowed: 'absolute'"
        )
    padding, tokens = config.pad_token_id, config.vocab_size
    if padding is None or padding >= tokens:
        raise ModelError(f"{where}: pad_token_id is {padding}; allowed: 0 to {tokens - 1}")
    longest = config.max_position_embeddings - architecture.first_position(config)
    if longest < _SHORTEST:
        raise ModelError(
            f"{where}: max_position_embeddings {config.max_position_embeddings} leave room for "
            f"{longest} tokens of a text; at least {_SHORTEST} are needed"
        )
    return config


def _fitting(
    config: Any, weights: Mapping[str, Tensor], folder: Path, *, allow_headless: bool
) -> dict[str, Tensor]:
    """Return the weights, tied ones once; raise ModelError unless they are all the config says.

    They are compared with the config before any of it is made.
    """
    where, architecture = folder / "config.json", ARCHITECTURES[config.model_type]
    layers = f"{architecture.masked_lm.base_model_prefix}.encoder.layer."
    check_depth(config.num_hidden_layers, weights, (layers,), where)
    module: Any = outline(lambda: build_module(config), where)
    own, tied = module.state_dict(), tied_names(module)
    check_shapes(weights, own, folder)
    whole = with_tied(weights, tied)
    # a checkpoint without a pooler is complete: the pooler is drawn
    missing = [n for n in own if n not in whole and n not in tied and POOLER not in n]
    head = f"{architecture.head}."
    fatal = [name for name in missing if not (allow_headless and name.startswith(head))]
    if fatal:
        hint = (
            "; if the model lacks a whole masked-LM head, one can be fitted first: give "
            f"'{{name: bert, source: {folder}, headless: true}}'"
            if fatal == missing
            else ""
        )
        raise ModelError(f"{folder}: weights missing: {', '.join(fatal[:4])} ...{hint}")
    return whole
