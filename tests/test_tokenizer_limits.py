"""Rules of a tokenizer that unfold a text, or search it without end, are refused before use."""

import json
import shutil
import unicodedata
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import raised_by, tiny_folder
from tokenizers import Tokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from recipe_ray.base.errors import ModelError
from recipe_ray.models.text.checkpoint import load_bert
from recipe_ray.models.text.encoding import TextEncoder
from recipe_ray.models.text.patterns import check_pattern
from recipe_ray.models.text.tokenizer_limits import check_probes, check_rules


def doubling(pattern: dict[str, str], content: str = "ee") -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def many(step: dict[str, Any], count: int = 33) -> dict[str, Any]:
    return {"type": "Sequence", "normalizers": [step] * count}


def _template(count: int) -> dict[str, Any]:
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [text] * count,
        "pair": [],
        "special_tokens": {},
    }


byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
untyped = {"pattern": {"String": "e"}, "content": "ee"}
RULES: dict[str, tuple[dict[str, Any], str]] = {
    "33 that double": ({"normalizer": many(doubling({"String": "e"}))}, "steps of rules"),
    "20 that double": ({"normalizer": many(doubling({"String": "e"}), 20)}, "one byte of a text"),
    "nested": ({"normalizer": many(many(doubling({"String": "e"}), 4), 4)}, "one byte of a text"),
    "one that is long": ({"normalizer": doubling({"String": "e"}, "e" * 2000)}, "one byte"),
    "by a pattern": ({"normalizer": many(doubling({"Regex": "[a-z]"}), 9)}, "one byte of a text"),
    "prepended": ({"normalizer": many({"type": "Prepend", "prepend": "abc"}, 9)}, "one byte"),
    "bytes of bytes": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [byte_level] * 12}},
        "one byte of a text",
    ),
    "a text repeated": ({"post_processor": _template(1000)}, "repeats a text"),
    "padding": ({"padding": {"strategy": {"Fixed": 10**9}}}, "padding to 1000000000 tokens"),
    "a long word": ({"normalizer": doubling({"String": "the"}, "e" * 400)}, "one byte of a text"),
    "no type": ({"normalizer": {"normalizers": [untyped] * 20}}, "unknown type of a normalizer"),
    "a type that the library guesses": (
        {"normalizer": {**doubling({"String": "e"}), "type": "replace"}},
        "did you mean 'Replace'?",
    ),
    "a second list": (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "normalizers": [],
                "pretokenizers": [byte_level] * 12,
            }
        },
        "one byte of a text",
    ),
    "a text repeated within": (
        {"post_processor": {"type": "Sequence", "decoders": [], "processors": [_template(1000)]}},
        "repeats a text",
    ),
    "a second text": (
        {"post_processor": {**_template(0), "single": [{"Sequence": {"id": "B", "type_id": 0}}]}},
        "asks for a second text",
    ),
    "more of each letter": (
        {"normalizer": doubling({"String": "e"}, "e" * 40)},
        "characters of 8 characters ('eeeeeeee' ...)",
    ),
    "a slow pattern": ({"normalizer": doubling({"Regex": "(a+)+b"})}, "repeats a group"),
}


def as_it_stands(place: Path) -> Path:
    """Return a model's folder whose tokenizer.json is read whole: BERT's class takes the words."""
    folder = Path(shutil.copytree(tiny_folder(), place / "model"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.timeout(60)
@pytest.mark.parametrize("rule", RULES)
def test_rules_that_unfold_are_refused_before_they_are_used(tmp_path: Path, rule: str) -> None:
    folder = as_it_stands(tmp_path)
    changes, said = RULES[rule]
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**whole, **changes}))
    message = raised_by(lambda: load_bert(folder))
    assert said in message
    assert "tokenizer.json" in message


MODELS = {
    "endless words": (
        {"max_input_chars_per_word": 10**9},
        "max_input_chars_per_word is 1000000000",
    ),
    "chance": ({"dropout": 0.5}, "other tokens each time"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_of_tokens_that_take_long_or_play_dice_are_refused(kind: str) -> None:
    changes, said = MODELS[kind]
    assert said in raised_by(lambda: check_rules(json.dumps({"model": changes}), HERE))


@pytest.mark.parametrize(
    "of_letter", [{letter: letter * 11 * len(letter.encode())} for letter in "e "]
)
def test_what_the_rules_make_of_short_texts_is_tried(of_letter: dict[str, str]) -> None:
    whole = json.loads((tiny_folder() / "tokenizer.json").read_text())
    step = precompiled(of_letter)
    check_rules(json.dumps({**whole, "normalizer": step}), HERE)  # no more than what NFKC may do
    tokenizer = Tokenizer.from_str(json.dumps({**whole, "normalizer": step}))
    with pytest.raises(ModelError, match=r"it makes .* of 8 characters"):
        check_probes(tokenizer, HERE)


def test_trying_a_tokenizer_leaves_its_settings_as_they_were() -> None:
    whole = json.loads((tiny_folder() / "tokenizer.json").read_text())
    tokenizer = Tokenizer.from_str(json.dumps(whole))
    tokenizer.enable_padding(length=128, pad_token="[PAD]")
    tokenizer.enable_truncation(32)
    before = tokenizer.to_str()
    check_probes(tokenizer, HERE)
    assert tokenizer.to_str() == before


def test_a_file_that_can_be_read_in_two_ways_is_read_as_it_was_checked(tmp_path: Path) -> None:
    folder = as_it_stands(tmp_path)
    text = (folder / "tokenizer.json").read_text().strip()
    step = json.dumps(many(doubling({"String": "e"}), 20))
    (folder / "tokenizer.json").write_text(
        f'{{"normalizer": {step}, {text[1:-1]}, "normalizer": null}}'
    )
    assert load_bert(folder).tokenizer.backend_tokenizer.normalizer is None


# --- what is in use


def charsmap(pairs: dict[str, str]) -> str:
    """Return sentencepiece's map of characters as a tokenizer.json holds it."""
    children: dict[tuple[int, int], int] = {}  # (block of a node, letter) -> block of its children
    starts, blocks = {}, 1
    replacements = b""
    for key, value in pairs.items():
        block = 0
        for letter in key.encode():
            if (block, letter) not in children:
                children[block, letter] = blocks
                blocks += 1
            block = children[block, letter]
        starts[block] = len(replacements)
        replacements += value.encode() + b"\0"
    # children of block N lie from 256 * (N + 1), so that no two nodes share a place
    units = [0xFF] * (256 * (blocks + 1))
    units[0] = 256 << 10
    for (block, letter), below in children.items():
        place = 256 * (block + 1) ^ letter
        units[place] = letter | (below in starts) << 8 | (place ^ 256 * (below + 1)) << 10
    for block, start in starts.items():
        units[256 * (block + 1)] = start | 1 << 31
    trie = b"".join(unit.to_bytes(4, "little") for unit in units)
    return b64encode(len(trie).to_bytes(4, "little") + trie + replacements).decode()


def precompiled(pairs: dict[str, str]) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": charsmap(pairs)}


UNFOLDED = unicodedata.normalize("NFKC", "\ufdfa")  # the longest, 33 bytes of 3
SENTENCEPIECE = precompiled({"\ufdfa": UNFOLDED, "\u3316": "km", "\u2126": "\u03a9"})
ALBERT = [
    doubling({"String": "``"}, '"'),
    doubling({"String": "''"}, '"'),
    {"type": "NFKD"},
    {"type": "StripAccents"},
    {"type": "Lowercase"},
    SENTENCEPIECE,
    doubling({"Regex": " {2,}"}, " "),
]
XLM = [SENTENCEPIECE, doubling({"Regex": " {2,}"}, " ")]
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"}
SPLIT = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, METASPACE]}
CHAINS: dict[str, dict[str, Any]] = {
    "albert": {"normalizer": {"type": "Sequence", "normalizers": ALBERT}, "pre_tokenizer": SPLIT},
    "xlm": {"normalizer": {"type": "Sequence", "normalizers": XLM}, "pre_tokenizer": SPLIT},
    "t5": {"normalizer": SENTENCEPIECE, "pre_tokenizer": METASPACE},
    "bert": {"normalizer": {"type": "BertNormalizer", "lowercase": True}},
    "gpt2": {"normalizer": None, "pre_tokenizer": {"type": "ByteLevel"}},
    "clip": {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, ALBERT[4]]}},
}


@pytest.mark.parametrize("chain", CHAINS)
def test_rules_that_are_in_use_are_allowed(chain: str) -> None:
    check_rules(json.dumps(CHAINS[chain]), Path("tokenizer.json"))


def test_a_map_of_characters_counts_by_what_it_makes_of_a_key() -> None:
    shown = normalizers.Precompiled(b64decode(SENTENCEPIECE["precompiled_charsmap"]))
    assert shown.normalize_str("a\ufdfa\u3316") == f"a{UNFOLDED}km"
    chain = {"type": "Sequence", "normalizers": [SENTENCEPIECE] * 3}
    check_rules(json.dumps({"normalizer": chain}), Path("x"))  # 11 ** 3
    for pairs in ({"a": "b" * 33}, {"ab": "c" * 66}, {"a" * 12: "b" * 400}):
        chain = {"type": "Sequence", "normalizers": [precompiled(pairs)] * 3}
        said = raised_by(lambda whole=chain: check_rules(json.dumps({"normalizer": whole}), HERE))
        assert "one byte of a text" in said


HERE = Path("tokenizer.json")
DAMAGED: dict[str, dict[str, Any]] = {
    "an empty map": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}},
    "a map that is cut off": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAAECAwRhYmMA"}
    },
    "no unknown token": {"model": {"type": "WordLevel", "vocab": {"[MASK]": 0}, "unk_token": "x"}},
    "a frame of nothing": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_tokenizer_that_fails_or_panics_at_a_text_is_named(tmp_path: Path, damage: str) -> None:
    whole = json.loads((tiny_folder() / "tokenizer.json").read_text())
    whole = {**whole, "added_tokens": [], **DAMAGED[damage]}
    broken = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(whole)), name_or_path="the-model"
    )
    encode = TextEncoder(broken, 16)
    assert "the-model: its tokenizer cannot encode a text" in raised_by(
        lambda: encode(["Call me Ishmael."], np.arange(1))
    )


USED = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    r" {2,}",
    r"\s+",
    r"[一-龥]+",
]


@pytest.mark.parametrize("pattern", USED)
def test_patterns_that_are_in_use_are_allowed(pattern: str) -> None:
    check_pattern(pattern, "here")


SLOW = [
    "(a+)+b",
    "(a|a)*b",
    "(?:a?){30}b",
    r"(a)\1+",
    "a*a*a*b",
    "(?=(a+)+b)a",
    "((a*)*)*",
    "a{9999}",
]


@pytest.mark.parametrize("pattern", SLOW)
def test_patterns_that_backtrack_are_refused(pattern: str) -> None:
    with pytest.raises(ModelError, match="here: pattern"):
        check_pattern(pattern, "here")
