"""Opening the tokenizer in a model's folder: its vocabulary and settings, no other file.

transformers takes every entry of tokenizer_config.json and special_tokens_map.json as an argument:
code to import, a vocabulary to be read from any path (and written into what `save` publishes), chat
templates, which are programs. So it gets a folder that holds only copies of the vocabulary files
and the settings that are known.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shortened
from tempfile import TemporaryDirectory
from typing import Any

from transformers import (
    BertTokenizer,
    HerbertTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

from recipe_ray.base.errors import ModelError, UnsafeModelError, unknown
from recipe_ray.base.foreign import is_there, read_foreign
from recipe_ray.base.loading import read_json
from recipe_ray.models.config_fields import explained_by
from recipe_ray.models.text.tokenizer_limits import (
    check_added,
    check_probes,
    check_rules,
    check_vocabulary,
)

WHOLE = "tokenizer.json"
CONFIG = "tokenizer_config.json"
_ADDED, _SPECIAL = "added_tokens.json", "special_tokens_map.json"
# class -> the files that it is made of if there is no tokenizer.json
_CLASSES: dict[str, tuple[type[PreTrainedTokenizerBase], tuple[str, ...]]] = {
    "BertTokenizer": (BertTokenizer, ("vocab.txt",)),
    "HerbertTokenizer": (HerbertTokenizer, ("vocab.json", "merges.txt")),
    "RobertaTokenizer": (RobertaTokenizer, ("vocab.json", "merges.txt")),
    "PreTrainedTokenizer": (PreTrainedTokenizerFast, ()),
    "TokenizersBackend": (PreTrainedTokenizerFast, ()),
}
MAX_FILE = 32 * 2**20  # bytes; that of 500,000 tokens has 10 MB
_TOKENS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_SETTINGS = frozenset(
    {
        *(f"{kind}_token" for kind in _TOKENS),
        "added_tokens_decoder",
        "additional_special_tokens",
        "extra_special_tokens",
        "do_lower_case",
        "do_basic_tokenize",
        "never_split",
        "strip_accents",
        "tokenize_chinese_chars",
        "add_prefix_space",
        "trim_offsets",
        "errors",
        "model_input_names",
        "model_max_length",
        "max_len",
        "max_length",
        "stride",
        "padding_side",
        "pad_to_multiple_of",
        "pad_token_type_id",
        "truncation_side",
        "truncation_strategy",
        "clean_up_tokenization_spaces",
        "split_special_tokens",
    }
)
# of these tokens, a dict's names become settings of their own when it is saved
_NAMING = frozenset({"additional_special_tokens", "extra_special_tokens"})
_ADDING = (*_NAMING, "added_tokens_decoder", "never_split")
# transformers wrote the place of these two on the author's machine; it is never looked up
_LEFT_BEHIND = frozenset({"name_or_path", "special_tokens_map_file"})
# what a class reads its vocabulary from, besides all that ends in `_file` or `_files`
_SOURCES = frozenset({"vocab", "merges", "init_inputs", "tokenizer_object"})


def load_tokenizer(folder: Path, default: str) -> PreTrainedTokenizerBase:
    """Return the folder's tokenizer, of class `default` if its settings name none.

    Raises ModelError if there is none, it cannot be read or it has no mask token;
    UnsafeModelError for settings that name files to be read.
    """
    settings = {name: _settings(folder / name) for name in (CONFIG, _SPECIAL)}
    kind, parts = _class_of(folder, settings[CONFIG].get("tokenizer_class") or default)
    files = (WHOLE,) if is_there(folder / WHOLE) else parts
    if not files or not all(is_there(folder / name) for name in files):
        raise ModelError(f"{folder}: no tokenizer; expected {' or '.join((WHOLE, *parts[:1]))}")
    with TemporaryDirectory(prefix="recipe-ray-") as place:
        _lay_out(Path(place), folder, (*files, _ADDED), settings, kind)
        why = f"no {kind.__name__} can be made of it"
        with explained_by(folder / files[0], why), _panics_unprinted():
            tokenizer: Any = kind.from_pretrained(place)
            check_probes(tokenizer.backend_tokenizer, folder / files[0])
    tokenizer.name_or_path = str(folder)
    if tokenizer.mask_token_id is None:
        raise ModelError(f"{folder}: its tokenizer has no mask token, which pre-training needs")
    whole: PreTrainedTokenizerBase = tokenizer
    return whole


@contextmanager
def _panics_unprinted() -> Iterator[None]:
    """Keep off the screen what a library in Rust prints before its panic becomes our error."""
    try:
        kept = os.dup(2)
    except OSError:  # this process has no standard error
        yield
        return
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check_tokens(tokenizer: PreTrainedTokenizerBase, rows: int, folder: Path) -> None:
    """Raise ModelError for a tokenizer with ids that the embeddings [rows, H] have no row for."""
    numbers = tokenizer.get_vocab().values()
    count = max(len(tokenizer), 1 + max(numbers, default=0))
    if count > rows:
        raise ModelError(
            f"{folder}: its tokenizer has {count} tokens, its embeddings have {rows} rows; "
            "allowed: as many or fewer"
        )


def _class_of(folder: Path, name: object) -> tuple[type[PreTrainedTokenizerBase], tuple[str, ...]]:
    plain = str(name).removesuffix("Fast")
    if plain not in _CLASSES:
        raise ModelError(f"{folder}: " + unknown("tokenizer_class", str(name)[:80], _CLASSES))
    return _CLASSES[plain]


def _settings(path: Path) -> dict[str, Any]:
    values = read_json(path) if is_there(path) else {}
    for name, value in values.items():
        reads = name in _SOURCES or name.endswith(("_file", "_files"))
        if reads and name not in _LEFT_BEHIND and value:
            raise UnsafeModelError(
                f"{path}: {name} is {shortened(value)}, and the tokenizer would read it from "
                "there; allowed: null, which means the files in the folder"
            )
        if name in _NAMING and isinstance(value, dict):
            wrong = [key for key in value if not key.endswith("_token")]
            if wrong:
                raise ModelError(
                    f"{path}: {name} names {shortened(wrong[0])}; allowed: names that end in _token"
                )
    return values


def _lay_out(
    place: Path,
    folder: Path,
    files: tuple[str, ...],
    settings: Mapping[str, dict[str, Any]],
    kind: type[PreTrainedTokenizerBase],
) -> None:
    for name in files:
        if is_there(folder / name):
            # what a link leads to is written into what `save` publishes
            content = read_foreign(folder / name, MAX_FILE, within=folder, error=UnsafeModelError)
            if name == WHOLE:
                with explained_by(folder / name, f"no {kind.__name__} can be made of it"):
                    # the checked value itself is used, not another reading of the same bytes
                    content = json.dumps(check_rules(content.decode(), folder / name)).encode()
            else:
                check_vocabulary(content, folder / name)
            (place / name).write_bytes(content)
    for name, values in settings.items():
        known = {field: value for field, value in values.items() if field in _SETTINGS}
        for field in _ADDING:
            check_added(values.get(field), folder / name)
        if values:
            (place / name).write_text(json.dumps(known))
