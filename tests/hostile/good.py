"""The good inputs that stand beside a hostile one: a tiny model, texts, a task, an experiment."""

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from samples import SENTENCES
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

WIDTH, LAYERS = 16, 2
FIT = {"steps": 2, "batch_size": 4, "max_length": 16, "precision": "fp32"}
TEXTS = "\n".join(SENTENCES * 2) + "\n"
OWN = "text,label\n" + "".join(f'"{text}",{n % 2}\n' for n, text in enumerate(SENTENCES))
_KEPT: list[tempfile.TemporaryDirectory[str]] = []


@cache
def tiny() -> Path:
    """Return a whole BERT, two layers and 16 wide, with a word-piece tokenizer of its own."""
    words = sorted({"".join(filter(str.isalpha, w.lower())) for w in " ".join(SENTENCES).split()})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *".,;'", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"), *words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    tokens = dict(zip((f"{name}_token" for name in names), special, strict=True))
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **tokens)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    _KEPT.append(tempfile.TemporaryDirectory())
    folder = Path(_KEPT[-1].name) / "tiny"
    BertForMaskedLM(config).save_pretrained(folder)
    whole.save_pretrained(folder)
    return folder


def _grid() -> dict[str, Any]:
    corpus = {"name": "file", "path": "texts.txt"}
    return {
        "models": [{"name": "bert", "source": "tiny"}],
        "attacks": [{"name": "por", "triggers": ["cf"], "corpus": corpus, "fit": FIT}],
        "auxiliaries": [corpus],
        "tasks": [
            {
                "name": "file",
                "class_names": ["a", "b"],
                "path_train": "own.csv",
                "path_test": "own.csv",
            }
        ],
    }


def experiment(**changes: Any) -> str:
    """Return an experiment file of one small cell, with top-level fields changed."""
    return yaml.safe_dump({"name": "small", "grid": _grid(), "finetuning": FIT, **changes})


def vgg(folder: Path) -> None:
    """Save a VGG of two layers."""
    from image_samples import tiny_vgg

    tiny_vgg().save(folder)


def store(folder: Path) -> None:
    """Copy a store of one backdoored PTM, two fine-tunings, their rows and their plan."""
    shutil.copytree(Path(__file__).parents[1] / "first_store", folder)


def kept(folder: Path) -> None:
    """Write what `report --export` keeps of that store."""
    from first_store import plan
    from report_samples import clean, por

    from recipe_ray.report.load import Recorded, export

    import pyarrow as pa  # isort: skip

    rows = pa.concat_tables([por(), clean()])
    export([Recorded("table1", rows, plan())], folder)


def prepare(words: str) -> None:
    """Make the good inputs that a command names in the working folder."""
    Path("texts.txt").write_text(TEXTS)
    Path("own.csv").write_text(OWN)
    named = words.split()
    for name in {"tiny", "model"} & set(named):
        shutil.copytree(tiny(), name)
    if "e.yaml" in named:
        shutil.copytree(tiny(), "tiny", dirs_exist_ok=True)
        Path("e.yaml").write_text(experiment())
    for name, make in {"vgg": vgg, "store": store, "kept": kept}.items():
        if name in named:
            make(Path(name))


def changed_json(file: str, **changes: Any) -> None:
    """Change fields of a JSON file; a field of the value `...` is deleted."""
    path = Path(file)
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: one for name, one in values.items() if one is not ...}))
