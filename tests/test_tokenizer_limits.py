"""Rules of a tokenizer that unfold a text, or search it without end, are refused before use."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from samples import raised_by, tiny_folder

from recipe_ray.base.errors import ModelError
from recipe_ray.models.text.checkpoint import load_bert
from recipe_ray.models.text.tokenizer_limits import check_pattern


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
RULES: dict[str, tuple[dict[str, Any], str]] = {
    "33 that double": ({"normalizer": many(doubling({"String": "e"}))}, "steps of rules"),
    "20 that double": ({"normalizer": many(doubling({"String": "e"}), 20)}, "of one byte of a"),
    "nested": ({"normalizer": many(many(doubling({"String": "e"}), 4), 4)}, "of one byte of a"),
    "one that is long": ({"normalizer": doubling({"String": "e"}, "e" * 2000)}, "of one byte"),
    "by a pattern": ({"normalizer": many(doubling({"Regex": "[a-z]"}), 9)}, "of one byte of a"),
    "prepended": ({"normalizer": many({"type": "Prepend", "prepend": "abc"}, 9)}, "of one byte"),
    "bytes of bytes": (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [byte_level] * 12}},
        "of one byte of a",
    ),
    "a text repeated": ({"post_processor": _template(1000)}, "repeats a text"),
    "padding": ({"padding": {"strategy": {"Fixed": 10**9}}}, "padding to 1000000000 tokens"),
    "a slow pattern": ({"normalizer": doubling({"Regex": "(a+)+b"})}, "repeats a group"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("rule", RULES)
def test_rules_that_unfold_are_refused_before_they_are_used(tmp_path: Path, rule: str) -> None:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "model"))
    changes, said = RULES[rule]
    whole = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**whole, **changes}))
    message = raised_by(lambda: load_bert(folder))
    assert said in message
    assert "tokenizer.json" in message


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
