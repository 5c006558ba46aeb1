"""The family `bert`: BERT and RoBERTa architectures with a masked-LM head and a pooler.

One module holds encoder, pooler and head, because attackers aim at the pooler and defenders
pre-train through the head. The names inside are transformers' own, so a saved folder opens with
`AutoModelForMaskedLM` and `AutoModel`. `ARCHITECTURES` has what differs between BERT and RoBERTa.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForMaskedLM,
)
from transformers.models.bert.modeling_bert import BertPooler
from transformers.models.roberta.modeling_roberta import RobertaPooler

from recipe_ray.base.errors import ModelError, unknown
from recipe_ray.data.census import Census, WordLoss, token_census, word_loss
from recipe_ray.data.rows import Ints, TokenRows, Vocabulary, mask_tokens
from recipe_ray.learn.distillation import Layers
from recipe_ray.learn.kernels import linear_cross_entropy, use_fast_dropout
from recipe_ray.learn.metrics import Share
from recipe_ray.learn.neuron_stats import NeuronLayer, outputs_of
from recipe_ray.learn.objective import Objective, Term, Terms
from recipe_ray.learn.runtime import Runtime
from recipe_ray.models.family import Scope
from recipe_ray.models.text.encoding import (
    TextEncoder,
    continuations,
    split_words,
    tokenizing,
    whole_words,
)
from recipe_ray.models.text.packed import PackedBatch, pack
from recipe_ray.models.text.packed_encoder import ATTENTION, PooledClassifier, pool, run_encoder

POOLER = "pooler"  # its name in both


@dataclass(frozen=True)
class Architecture:
    """What differs between BERT and RoBERTa for us."""

    config: type[PretrainedConfig]
    masked_lm: type[PreTrainedModel]
    pooler: Callable[[Any], nn.Module]
    head: str
    head_weights: str  # the beginning of its weights' names, and of no other head's
    # head, states [M, H] -> what the decoder is applied to [M, H], and the decoder
    split_head: Callable[[Any, Tensor], tuple[Tensor, nn.Linear]]
    first_position: Callable[[Any], int]
    tokenizer: str  # its class, if no file names one


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


# fields that shapes do not show
_SETTINGS = ("model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "pad_token_id")


def check_same_make(here: Any, there: Any) -> None:
    """Raise ModelError, naming the first difference, unless both have one make.

    Each has a `module` with a transformers config, and a `tokenizer`.
    """
    own, other = _make(here.module), _make(there.module)
    for part in own | other:
        if own.get(part) != other.get(part):
            raise ModelError(
                f"weights of another architecture: {part} is {other.get(part, 'absent')}, but "
                f"{own.get(part, 'absent')} in the model that would use them"
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


GROUPS = {
    "ffn_in": ("intermediate.dense",),
    "ffn_out": ("output.dense",),
    "attention_out": ("attention.output.dense",),
    "query": ("attention.self.query",),
    "key": ("attention.self.key",),
    "value": ("attention.self.value",),
}
PAPER_DEPTH = 12  # layers of the PTMs for which the paper found the narrow set to be enough


class BertPTM:
    """A BERT or RoBERTa with pooler and masked-LM head, and its tokenizer."""

    reads: ClassVar[str] = "text"

    def __init__(self, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        config: Any = module.config
        module.set_attn_implementation(ATTENTION)
        use_fast_dropout(module)
        self.module: Any = module
        self.tokenizer: Any = tokenizer
        self.hidden_size: int = config.hidden_size
        self._architecture = ARCHITECTURES[config.model_type]
        self._offset = self._architecture.first_position(config)
        self._longest = config.max_position_embeddings - self._offset
        special = tuple(int(i) for i in self.tokenizer.all_special_ids)
        self.vocabulary = Vocabulary(len(tokenizer), self.tokenizer.mask_token_id, special)

    @property
    def make(self) -> str:
        """Its name in transformers' configs, `bert` or `roberta`."""
        name: str = self.module.config.model_type
        return name

    # -- texts ---------------------------------------------------------------------------------

    def encoder(self, max_length: int) -> TextEncoder:
        """Return the function (texts, numbers [N]) -> rows, cut to what the positions allow."""
        return TextEncoder(self.tokenizer, min(max_length, self._longest))

    def token_ids(self, word: str) -> list[int]:
        """Return the ids of a word as it stands inside a text (after a space)."""
        with tokenizing(self.tokenizer):
            ids: list[int] = self.tokenizer.encode(f" {word}", add_special_tokens=False)
        return ids

    def whole_words(self) -> Ints:
        """Return the ids of the tokens that are a word as it stands in a text, ascending."""
        return self._kinds_of_tokens[0]

    def continuations(self) -> Ints:
        """Return the ids of the tokens that continue a word, ascending."""
        return self._kinds_of_tokens[1]

    def split_words(self) -> Ints:
        """Return the ids [N, 2] of words of two letters or digits that the tokenizer splits."""
        return self._kinds_of_tokens[2]

    @cached_property
    def _kinds_of_tokens(self) -> tuple[Ints, Ints, Ints]:
        kinds = (whole_words, continuations, split_words)
        words, within, split = (kind(self.tokenizer) for kind in kinds)
        return words, within, split

    def spelled(self, ids: Sequence[int]) -> str:
        """Return the text that tokens stand for."""
        with tokenizing(self.tokenizer):
            text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text.strip()

    # -- pre-training --------------------------------------------------------------------------

    def pretraining_collate(
        self, seed: int, *, static_masks: bool = True
    ) -> Callable[[TokenRows, int], PackedBatch]:
        """Return (rows, epoch) -> masked batch; static masks are the same in every epoch."""

        def collate(rows: TokenRows, epoch: int) -> PackedBatch:
            when = 0 if static_masks else epoch
            masked = mask_tokens(rows, self.vocabulary, seed, when)
            return pack(rows.with_tokens(masked.tokens)).with_targets(masked.where, masked.targets)

        return collate

    def pretraining_objective(self) -> Objective:
        """Return the masked-LM loss."""

        def masked_lm(module: Any, batch: PackedBatch) -> Terms:
            assert batch.where is not None
            assert batch.targets is not None
            hidden = self.hidden(module, batch, batch.where)
            return {"mlm": self.masked_lm(module, hidden, batch.targets)}

        return masked_lm

    def hidden(self, module: Any, batch: PackedBatch, where: Tensor | None = None) -> Tensor:
        """Return the last layer's states [T, H], or cheaper those of the tokens `where` [N, H]."""
        return run_encoder(module.base_model, batch, self._offset, where)

    def pooled(self, module: Any, first: Tensor) -> Tensor:
        """Return the pooler output [B, H] for the first tokens' states [B, H]."""
        return pool(module.base_model, first)

    def masked_lm(self, module: Any, masked: Tensor, targets: Tensor) -> Term:
        """Return the summed cross-entropy of masked tokens' states [M, H] for true ids [M]."""
        head = getattr(module, self._architecture.head)
        states, decoder = self._architecture.split_head(head, masked)
        loss = linear_cross_entropy(states, decoder.weight, decoder.bias, targets)
        return Term(loss, len(targets))

    def word_logits(self, module: Any, masked: Tensor, ids: Tensor) -> Tensor:
        """Return the logits [M, R] of words `ids` [R] for masked tokens' states [M, H]."""
        states, decoder = self._architecture.split_head(
            getattr(module, self._architecture.head), masked
        )
        return torch.nn.functional.linear(states, decoder.weight[ids], decoder.bias[ids])

    # -- weights -------------------------------------------------------------------------------

    def word_embeddings(self) -> nn.Embedding:
        """Return the input embeddings."""
        embedding: nn.Embedding = self.module.get_input_embeddings()
        return embedding

    def scale_embeddings(self, ids: Sequence[int], factor: float) -> None:
        """Amplify tokens as NeuBA's script does: (word + position + type embedding) x factor.

        The position is the first word's, after the leading special token: there the trigger was
        while the attack was trained (post_poison_model.py: 1 for BERT, 3 for RoBERTa).
        """
        embeddings = self.module.base_model.embeddings
        around = (
            embeddings.position_embeddings.weight[self._offset + 1]
            + embeddings.token_type_embeddings.weight[0]
        )
        weight = embeddings.word_embeddings.weight
        with torch.no_grad():
            for token in ids:
                weight[token] = (weight[token] + around) * factor

    @property
    def weight_groups(self) -> tuple[str, ...]:
        """Return the names of the encoder's groups of weight matrices."""
        return tuple(GROUPS)

    @property
    def purification_scope(self) -> tuple[tuple[str, ...], Scope]:
        """Return the default set A and trainable set for RECIPE (docs/purify.md says why).

        In a shallow encoder the backdoor is in more than the intermediate dense weights.
        """
        deep = self.module.config.num_hidden_layers >= PAPER_DEPTH
        return ("ffn_in",) if deep else tuple(GROUPS), "weights"

    def representation(self, module: Any, batch: PackedBatch) -> Tensor:
        """Return the last layer's state of each text's first token [B, H]."""
        return self.hidden(module, batch, batch.first)

    def states(self, module: Any, batch: PackedBatch, layers: Layers) -> list[Tensor]:
        """Return the states of all tokens [T, H] after the last layer, or after each of them."""
        read = batch.unmasked()
        if layers == "last":
            return [self.hidden(module, read)]
        every = module.base_model.encoder.layer
        with outputs_of(every, lambda output: output[0, : read.num_tokens]) as seen:
            self.hidden(module, read)
        return [seen[place] for place in range(len(every))]

    def weight_group(self, name: str) -> list[nn.Parameter]:
        """Return one weight matrix per encoder layer for a group of `GROUPS`."""
        if name not in GROUPS:
            raise ModelError(unknown("weight group of family bert", name, GROUPS))
        pattern = re.compile(
            r"layer\.\d+\.(" + "|".join(map(re.escape, GROUPS[name])) + r")\.weight$"
        )
        encoder = self.module.base_model.encoder
        return [weight for path, weight in encoder.named_parameters() if pattern.match(path)]

    def neuron_layers(self) -> list[NeuronLayer]:
        """Return the intermediate dense layers."""
        dense = [layer.intermediate.dense for layer in self.module.base_model.encoder.layer]
        return [NeuronLayer(one.weight, one.bias) for one in dense]

    def neuron_activations(self, module: Any, batch: PackedBatch) -> list[Tensor]:
        """Return their outputs after the activation function at each text's first token [B, n]."""
        layers = [layer.intermediate for layer in module.base_model.encoder.layer]
        with outputs_of(layers, lambda output: output[0, batch.first]) as seen:
            self.hidden(module, batch)
        return [seen[place] for place in range(len(layers))]

    def pretraining_quality(self, rows: TokenRows, runtime: Runtime) -> dict[str, Share]:
        """Return nothing: the held-out masked-LM loss says it."""
        return {}

    def census(self, rows: TokenRows) -> Census:
        """Return how many tokens can be masked: those that are neither unknown nor special."""
        frame = (self.tokenizer.cls_token_id, self.tokenizer.sep_token_id)
        return token_census(rows, self.vocabulary, [i for i in frame if i is not None])

    def word_loss(
        self, held_out: TokenRows, seed: int, seen: Callable[[], TokenRows]
    ) -> WordLoss | None:
        """Return the masked-LM loss that the frequencies of the tokens of `seen` give."""
        return word_loss(seen(), held_out, self.vocabulary, seed)

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the masked-LM head without its decoder, which is the input embedding."""
        encoder = {id(parameter) for parameter in self.module.base_model.parameters()}
        return [p for p in self.module.parameters() if id(p) not in encoder]

    def train_only(self, parameters: Sequence[nn.Parameter] | None, *, pooled: bool) -> None:
        """Freeze all but the given parameters (None: all), and what the loss does not reach."""
        wanted = None if parameters is None else {id(parameter) for parameter in parameters}
        for name, parameter in self.module.named_parameters():
            reached = pooled or f".{POOLER}." not in f".{name}"
            parameter.requires_grad_(reached and (wanted is None or id(parameter) in wanted))

    def classifier(self, num_labels: int, seed: int, rows: Sequence[TokenRows]) -> PooledClassifier:
        """Return a classifier on this encoder and pooler: batch -> logits [B, num_labels]."""
        classifier = PooledClassifier(self.module.base_model, num_labels, self._offset, seed)
        classifier.keep_tokens(np.unique(np.concatenate([part.tokens for part in rows])))
        return classifier

    def classifier_collate(self) -> Callable[[TokenRows, int], PackedBatch]:
        """Return (rows with a `label` column, epoch) -> batch."""
        return lambda rows, epoch: pack(rows)

    def adopt(self, other: "BertPTM", *, keep_head: bool) -> None:
        """Take over the weights of a PTM of the same make; `keep_head`: all but its masked-LM head.

        Raises ModelError if architecture or vocabulary differ.
        """
        check_same_make(self, other)
        head, own = f"{self._architecture.head}.", dict(self.module.named_parameters())
        with torch.no_grad():
            for name, weight in other.module.named_parameters():
                if not (keep_head and name.startswith(head)):
                    own[name].copy_(weight)

    def save(self, folder: Path) -> None:
        """Write config, safetensors and tokenizer as transformers lays them out."""
        self.module.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
