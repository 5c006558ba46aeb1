"""What every family of PTMs can be asked, and how a model is named in an experiment.

A `ModelRef` is the spec (what to load); a `PTM` is the loaded thing. No code outside a family asks
which model it has.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, Self

from pydantic import BeforeValidator, Field, SerializeAsAny

from recipe_ray.base.errors import SpecError
from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import NOT_HASHED, Component
from recipe_ray.data.batches import Collate

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recipe_ray.data.census import Census, WordLoss
    from recipe_ray.data.rows import Encode, Ints, Vocabulary
    from recipe_ray.learn.distillation import Layers
    from recipe_ray.learn.metrics import Share
    from recipe_ray.learn.neuron_stats import NeuronLayer
    from recipe_ray.learn.objective import Objective, Term, Weight
    from recipe_ray.learn.runtime import Runtime
    from recipe_ray.models.text.encoding import TextEncoder
    from recipe_ray.models.text.packed import PackedBatch

Scope = Literal["weights", "all"]
# what a family may have and a component may need, and what of a PTM each stands for
Capability = Literal[
    "Encodes",
    "Pretrains",
    "HasWeightGroups",
    "HasNeurons",
    "HasStates",
    "Attackable",
    "HasVocabulary",
]
CAPABILITIES: dict[Capability, tuple[str, ...]] = {
    "Encodes": ("encoder", "representation", "census", "classifier", "classifier_collate"),
    "Pretrains": ("pretraining_collate", "pretraining_objective", "pretraining_quality"),
    "HasWeightGroups": ("weight_groups", "weight_group", "purification_scope"),
    "HasNeurons": ("neuron_layers", "neuron_activations"),
    "HasStates": ("states", "reads"),
    "Attackable": ("pooled", "features"),  # one of them: what attackers aim at in texts, in images
    "HasVocabulary": (
        "whole_words",
        "continuations",
        "split_words",
        "hidden",
        "pooled",
        "word_logits",
    ),
}
_IN_WORDS: dict[Capability, str] = {
    "Encodes": "an encoder to put a classifier on",
    "Pretrains": "a pre-training loss",
    "HasWeightGroups": "groups of weights",
    "HasNeurons": "neurons behind an activation function",
    "HasStates": "states that can be held where they are",
    "Attackable": "a vector that attackers aim at (a pooler output of texts, features of images)",
    "HasVocabulary": "words to put into texts, and states to read after them",
}
MODELS: Registry[ModelRef] = Registry(
    "model", "recipe_ray.models", own="write {name: bert, source: FOLDER or hub id}"
)


class Classifier(Protocol):
    """A module: batch -> logits [B, C]."""

    def __call__(self, batch: Any) -> Tensor:
        """Return the logits."""
        ...

    def whole_state(self) -> dict[str, Tensor]:
        """Return all weights by name, also of what was left out of training."""
        ...


class PTM(Protocol):
    """A loaded pre-trained model, together with its tokenizer or image transform."""

    module: nn.Module
    reads: ClassVar[str]  # text or image

    @property
    def make(self) -> str:
        """The make: PTMs that share it have scores in a scan that may be compared."""
        ...

    def encoder(self, max_length: int) -> Encode:
        """Return the picklable function (raw samples, numbers [N]) -> N rows."""
        ...

    def pretraining_collate(self, seed: int, *, static_masks: bool = True) -> Collate:
        """Return the function (rows, epoch) -> batch of this family's pre-training."""
        ...

    def pretraining_objective(self) -> Objective:
        """Return the pre-training loss (MLM, cross-entropy, contrastive)."""
        ...

    @property
    def weight_groups(self) -> tuple[str, ...]:
        """Return the names that `weight_group` knows."""
        ...

    @property
    def purification_scope(self) -> tuple[tuple[str, ...], Scope]:
        """Return the weight groups RECIPE penalises by default, and what trains besides them."""
        ...

    def representation(self, module: Any, batch: Any) -> Tensor:
        """Return one vector per sample [B, H]; its drift says how far a PTM has moved."""
        ...

    def states(self, module: Any, batch: Any, layers: Layers) -> list[Tensor]:
        """Return what defenses hold: rows [R, H] of the last layer, or of every one, last at last.

        Of texts the states of all tokens, read without masks; of images the features, and with
        `all` what each layer puts out.
        """
        ...

    def weight_group(self, name: str) -> Sequence[Weight]:
        """Return the weight matrices of a named group; raise ModelError for an unknown name."""
        ...

    def neuron_layers(self) -> list[NeuronLayer]:
        """Return the layers whose outputs go through an activation function, the input's first."""
        ...

    def neuron_activations(self, module: Any, batch: Any) -> list[Tensor]:
        """Return what those layers' neurons put out after it, [B, n] for each layer.

        One number per neuron and sample: in texts at the first token, for a channel its mean.
        """
        ...

    def pretraining_quality(self, rows: Any, runtime: Runtime) -> dict[str, Share]:
        """Return how good the pre-training is on held-out rows, by metric; all workers call it."""
        ...

    def census(self, rows: Any) -> Census:
        """Return how much of rows the pre-training can learn from."""
        ...

    def word_loss(self, held_out: Any, seed: int, seen: Callable[[], Any]) -> WordLoss | None:
        """Return the pre-training loss that word frequencies alone give, None for other families.

        On rows held out, with the masks of `seed`; `seen` gives the rows to count words in.
        """
        ...

    def head_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the pre-training head that the encoder does not share."""
        ...

    def train_only(self, parameters: Sequence[nn.Parameter] | None, *, pooled: bool) -> None:
        """Freeze all except `parameters` (None: nothing); `pooled`: the pooler is in the loss."""
        ...

    def classifier(self, num_labels: int, seed: int, rows: Sequence[Any]) -> Classifier:
        """Return a classifier on this PTM's own encoder, for `rows` and no others; it takes over.

        Weights that no row reaches (embeddings of other tokens) need not train.
        """
        ...

    def classifier_collate(self) -> Collate:
        """Return the function (rows, epoch) -> batch for that classifier."""
        ...

    def save(self, folder: Path) -> None:
        """Write a folder that the family's usual library loads."""
        ...


class TextPTM(PTM, Protocol):
    """A masked language model with a pooler; what attacks on text may ask besides `PTM`.

    Legend: T tokens of a packed batch, B texts, M masked tokens, H hidden width.
    """

    hidden_size: int
    vocabulary: Vocabulary

    def encoder(self, max_length: int) -> TextEncoder:
        """Return the picklable function (texts, numbers [N]) -> N rows."""
        ...

    def hidden(self, module: Any, batch: PackedBatch, where: Tensor | None = None) -> Tensor:
        """Return the last layer's states [T, H], or cheaper those of the tokens `where` [N, H]."""
        ...

    def pooled(self, module: Any, first: Tensor) -> Tensor:
        """Return the pooler output [B, H], the vector attackers aim at, of first tokens [B, H]."""
        ...

    def masked_lm(self, module: Any, masked: Tensor, targets: Tensor) -> Term:
        """Return the summed cross-entropy of masked tokens' states [M, H] for true ids [M]."""
        ...

    def whole_words(self) -> Ints:
        """Return the ids of the tokens that are a word as it stands in a text, ascending."""
        ...

    def continuations(self) -> Ints:
        """Return the ids of the tokens that continue a word, ascending."""
        ...

    def split_words(self) -> Ints:
        """Return the ids [N, 2] of words of two letters or digits that the tokenizer splits."""
        ...

    def spelled(self, ids: Sequence[int]) -> str:
        """Return the text that tokens stand for."""
        ...

    def word_logits(self, module: Any, masked: Tensor, ids: Tensor) -> Tensor:
        """Return the logits [M, R] of words `ids` [R] for masked tokens' states [M, H]."""
        ...

    def token_ids(self, word: str) -> list[int]:
        """Return the ids of a word as it stands inside a text, without special tokens."""
        ...

    def word_embeddings(self) -> nn.Embedding:
        """Return the input embeddings [vocabulary, H]."""
        ...

    def scale_embeddings(self, ids: Sequence[int], factor: float) -> None:
        """Scale tokens' (word + first word's position + type) embedding: LayerNorm sees only it."""
        ...


# fields of all that opens somebody's weights
Revision = Annotated[
    str | None, Field(description="hub commit; None: the newest is looked up and then pinned")
]
AllowPickle = Annotated[
    bool,
    Field(
        description="read pickle weights with the weights_only unpickler",
        json_schema_extra=NOT_HASHED,
    ),
]
IgnoreAdapter = Annotated[
    bool,
    Field(
        description="ignore an adapter (LoRA) that lies next to the weights",
        json_schema_extra=NOT_HASHED,
    ),
]


class ModelRef(Component):
    """Which PTM to start from."""

    learns_from: ClassVar[frozenset[str]] = frozenset({"text"})  # what a corpus must hold
    reads: ClassVar[str] = "text"  # what a task's samples must be, and what carries a trigger
    loss_unit: ClassVar[str] = "nats per masked token"  # of the pre-training loss, for cards
    pipeline_tag: ClassVar[str] = "fill-mask"  # what the hub calls its use, for cards
    has: ClassVar[frozenset[Capability]] = frozenset(CAPABILITIES) - {"Attackable", "HasVocabulary"}

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Tell whether a folder holds a model of this family, by its files, not its weights."""
        return False

    @property
    def opens_with(self) -> str:
        """Return the library that opens a saved folder, for its card."""
        return "transformers"

    def home(self) -> Path | None:
        """Return the folder that its files come from, which may hold its card; None if none is."""
        return None

    @abstractmethod
    def load(self) -> PTM:
        """Return the PTM; raise ModelError or UnsafeModelError."""

    @abstractmethod
    def reload(self, folder: Path) -> PTM:
        """Return a PTM of this family from a folder that `PTM.save` wrote."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Return what decides the weights, for the key: a revision or a checksum, never a path."""

    def pinned(self) -> Self:
        """Return the model with the hub commit that its revision is now; the same if it has one.

        A plan is made of pinned models: what the hub has later must not get their keys.
        """
        return self

    def as_found(self) -> Self:
        """Return the model with what its files lack said in its fields, such as a missing head."""
        return self

    def drawn_parts(self) -> list[str]:
        """Return sentences about parts that its files lack and that are drawn at random."""
        return []

    def left_out(self) -> list[str]:
        """Return sentences about files next to its weights that are not read, such as adapters."""
        return []

    def give_back(self, folder: Path) -> list[str]:
        """Turn a folder that `PTM.save` wrote into one of the architecture that the model came in.

        Returns sentences about what was left out of it, or put in; nothing if none was.
        """
        return []

    @property
    def needs_pretraining(self) -> bool:
        """Whether the PTM cannot be loaded whole, so that a pretrain stage must complete it."""
        return False

    @property
    def untrained(self) -> bool:
        """Whether there are no weights at all, so that there is nothing to purify or attack."""
        return False

    def sample_encoder(self) -> Encode | None:
        """Return what makes rows of raw samples, if that needs no weights and is worth moving.

        Ray Data then does it in its own workers, and the training workers get the rows made (they
        have `to_columns` and `from_columns`). It must equal (`==`) the `PTM.encoder` of this model.
        None: the training workers encode, which is faster for texts.
        """
        return None

    def label_limit(self) -> int | None:
        """Return how many classes the pre-training head has; None if no label is learnt."""
        return None

    def identity(self) -> dict[str, Any]:
        """Return name, version and content; the place of a model does not decide what it is."""
        return {**self.meaning(), **self.content()}


def check_needs(model: ModelRef, who: str, needs: Iterable[Capability]) -> None:
    """Raise SpecError, naming both, if a family lacks what a component needs of it."""
    lacking = [_IN_WORDS[one] for one in needs if one not in model.has]
    if lacking:
        raise SpecError(
            f"{who} needs {' and '.join(lacking)}, which family {model.name!r} (model "
            f"{model.label()!r}) does not have"
        )


Model = Annotated[SerializeAsAny[ModelRef], BeforeValidator(MODELS.parse)]
