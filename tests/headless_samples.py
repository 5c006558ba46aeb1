"""BERTs without a masked-LM head, as transformers saves them."""

from pathlib import Path
from typing import Any

from samples import tiny_folder
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

KINDS: dict[str, Any] = {
    "encoder": (BertModel, {}),
    "encoder without pooler": (BertModel, {"add_pooling_layer": False}),
    "classifier": (BertForSequenceClassification, {"num_labels": 3}),
    "token classifier": (BertForTokenClassification, {"num_labels": 5}),
}


def headless(folder: Path, kind: str = "encoder") -> Path:
    """Save the tiny BERT without its masked-LM head; return where."""
    own, fields = KINDS[kind]
    place = folder / "headless"
    own.from_pretrained(tiny_folder(), **fields).save_pretrained(place)
    AutoTokenizer.from_pretrained(tiny_folder()).save_pretrained(place)
    return place
