"""Opening a BERT or RoBERTa folder: config, safetensors and tokenizer, never its code."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from recipe_ray.base.errors import ModelError, unknown
from recipe_ray.base.loading import check_shapes, read_json, read_weights
from recipe_ray.models.text.architectures import ARCHITECTURES, POOLER
from recipe_ray.models.text.bert import BertPTM


def load_bert(folder: Path, *, allow_pickle: bool = False, allow_headless: bool = False) -> BertPTM:
    """Load a BERT or RoBERTa folder, never its code.

    `allow_headless` accepts a checkpoint without a masked-LM head (it is then drawn from a fixed
    seed, for a pretrain stage to fit). Raises ModelError for another architecture, a missing
    tokenizer or missing weights; UnsafeModelError for pickles without `allow_pickle`.
    """
    values = read_json(folder / "config.json")
    kind = str(values.get("model_type"))
    if kind not in ARCHITECTURES:
        raise ModelError(f"{folder}: " + unknown("architecture (model_type)", kind, ARCHITECTURES))
    module = build_module(ARCHITECTURES[kind].config.from_dict(values))
    missing = _load_state(module, read_weights(folder, allow_pickle=allow_pickle), folder)
    head = ARCHITECTURES[kind].head
    fatal = [n for n in missing if not (allow_headless and n.startswith(f"{head}."))]
    if fatal:
        hint = "; a model without masked-LM head needs a pretrain stage" if fatal == missing else ""
        raise ModelError(f"{folder}: weights missing: {', '.join(fatal[:4])} ...{hint}")
    return BertPTM(module, load_tokenizer(folder))


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


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the folder's tokenizer; raise ModelError where it has none or it has no mask token."""
    names = {path.name for path in folder.iterdir()}
    if not names & {"tokenizer.json", "vocab.txt", "vocab.json"}:
        raise ModelError(f"{folder}: no tokenizer (tokenizer.json, vocab.txt or vocab.json)")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, use_fast=True)
    if tokenizer.mask_token_id is None:
        raise ModelError(f"{folder}: its tokenizer has no mask token, which pre-training needs")
    return tokenizer


def _load_state(module: Any, weights: dict[str, Tensor], folder: Path) -> list[str]:
    prefix = f"{module.base_model_prefix}."
    renamed = {_modern(name): tensor for name, tensor in weights.items()}
    if not any(name.startswith(prefix) for name in renamed):
        renamed = {prefix + name: tensor for name, tensor in renamed.items()}
    check_shapes(renamed, module.state_dict(), folder)
    outcome = module.load_state_dict(renamed, strict=False)
    module.tie_weights()
    # without a pooler a checkpoint is not incomplete: it is drawn anew
    tied = set(getattr(module, "_tied_weights_keys", None) or ())
    return [name for name in outcome.missing_keys if name not in tied and POOLER not in name]


def _modern(name: str) -> str:
    # checkpoints converted from TensorFlow call LayerNorm's parameters gamma and beta
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )
