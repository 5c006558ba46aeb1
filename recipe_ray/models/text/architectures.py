"""What differs between BERT and RoBERTa: classes, names, where positions and the MLM head begin."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)
from transformers.models.bert.modeling_bert import BertPooler
from transformers.models.roberta.modeling_roberta import RobertaPooler

POOLER = "pooler"  # its name in both


@dataclass(frozen=True)
class Architecture:
    """What differs between BERT and RoBERTa for us."""

    config: type[PretrainedConfig]
    masked_lm: type[PreTrainedModel]
    pooler: Callable[[Any], nn.Module]
    head: str
    head_weights: str  # what the names of its weights begin with, and of no other head's
    # head, states [M, H] -> what the decoder is applied to [M, H], and the decoder
    split_head: Callable[[Any, Tensor], tuple[Tensor, nn.Linear]]
    first_position: Callable[[Any], int]
    tokenizer: str  # its class, where no file names one


def _split_bert(head: Any, states: Tensor) -> tuple[Tensor, nn.Linear]:
    return head.predictions.transform(states), head.predictions.decoder


def _split_roberta(head: Any, states: Tensor) -> tuple[Tensor, nn.Linear]:
    return head.layer_norm(gelu(head.dense(states))), head.decoder


ARCHITECTURES = {
    "bert": Architecture(
        BertConfig,
        BertForMaskedLM,
        BertPooler,
        "cls",
        "cls.predictions.",
        _split_bert,
        lambda c: 0,
        "BertTokenizer",
    ),
    # RoBERTa numbers positions from padding_idx + 1
    "roberta": Architecture(
        RobertaConfig,
        RobertaForMaskedLM,
        RobertaPooler,
        "lm_head",
        "lm_head.",
        _split_roberta,
        lambda c: c.pad_token_id + 1,
        "RobertaTokenizer",
    ),
}
