"""What a tokenizer.json may do to a text: how much it grows, how long a pattern may search.

A few hundred bytes of rules can double a text again and again, or make a search of a pattern take
for ever. They are counted before any tokenizer is made of them: `check_rules` says the limits.
"""

import json
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from recipe_ray.base.errors import ModelError
from recipe_ray.data.rows import Ints

MAX_STEPS = 32  # normalizers, pre-tokenizers and post-processors, nested ones counted
# bytes of the worst text for each of its bytes, all steps together; ALBERT's and XLNet's have 1452
MAX_GROWTH = 1500
MAX_ADDED = 100_000  # tokens beside the vocabulary
MAX_TOKENS = 2_000_000
MAX_TOKEN = 1024  # bytes of a token, prefix or suffix
MAX_FRAME = 16  # special tokens put around a text
MAX_PATTERN = 2000  # characters
_MAX_COUNT = 1000  # in {n,m} of a pattern
_MAX_OPEN = 2  # repetitions without end in one branch of a pattern
_MAX_OPTIONAL = 11  # parts; an open repetition counts as _OPEN of them
_OPEN = 4
_LONGEST_KEY = 8  # bytes of a key of characters that is looked for in a trie
_MANY_KEYS = 2**16
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_NESTED = ("normalizers", "pretokenizers", "processors", "decoders")
# bytes in UTF-8 for one byte, of the worst character: U+FDFA under the compatibility forms
_KNOWN_GROWTH = {"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 1.5, "Nmt": 1}
_KNOWN_GROWTH |= {"BertNormalizer": 7.5, "ByteLevel": 3, "Strip": 1}
_KNOWN_GROWTH |= {"StripAccents": 1}


def check_rules(text: str, where: Path) -> None:
    """Raise ModelError for a tokenizer.json whose rules or tokens exceed the limits above.

    Raises ValueError or RecursionError for what is no JSON.
    """
    whole = json.loads(text)
    if not isinstance(whole, dict):
        raise TypeError("expected a JSON object")
    steps = {part: list(_steps(whole.get(part))) for part in _PARTS}
    count = sum(map(len, steps.values()))
    if count > MAX_STEPS:
        raise ModelError(f"{where}: {count} steps of rules; allowed: at most {MAX_STEPS}")
    for part, those in steps.items():
        for step in those:
            _check_step(step, f"{where}: {part}")
    _check_growth([*steps["normalizer"], *steps["pre_tokenizer"]], where)
    _check_frame(steps["post_processor"], where)
    _check_tokens(whole, where)
    _check_padding(whole.get("padding"), where)


def check_added(tokens: Any, where: Path) -> None:
    """Raise ModelError for more than `MAX_ADDED` tokens, or one that is too long."""
    if isinstance(tokens, list | dict) and len(tokens) > MAX_ADDED:
        raise ModelError(f"{where}: {len(tokens)} added tokens; allowed: at most {MAX_ADDED}")
    for token in tokens if isinstance(tokens, list | dict) else ():
        _check_length(token.get("content") if isinstance(token, dict) else token, where)


def check_vocabulary(content: bytes, where: Path) -> None:
    """Raise ModelError for a vocab.txt, vocab.json or merges.txt with more or longer tokens."""
    lines = content.count(b"\n") if where.suffix == ".txt" else content.count(b'":')
    if lines > MAX_TOKENS:
        raise ModelError(f"{where}: {lines} tokens; allowed: at most {MAX_TOKENS}")
    longest = max(map(len, re.split(rb'\n|"', content)))
    if longest > MAX_TOKEN:
        raise ModelError(f"{where}: a token of {longest} bytes; allowed: at most {MAX_TOKEN}")


def _steps(node: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(node, dict):
        return
    inner = next((node[name] for name in _NESTED if isinstance(node.get(name), list)), None)
    if inner is None:
        yield node
    for step in inner or ():
        yield from _steps(step)


def _check_step(step: Mapping[str, Any], where: str) -> None:
    for value in step.values():
        pattern = value.get("Regex") if isinstance(value, dict) else None
        if isinstance(pattern, str):
            check_pattern(pattern, where)


def _check_growth(steps: list[dict[str, Any]], where: Path) -> None:
    factor = prod((_growth(step) for step in steps), start=1.0)
    if factor > MAX_GROWTH:
        raise ModelError(
            f"{where}: its rules can make {factor:.3g} bytes of one byte of a text; allowed: at "
            f"most {MAX_GROWTH}"
        )


def _growth(step: Mapping[str, Any]) -> float:
    """Return for how many bytes one byte of a text can come out of a step."""
    kind = step.get("type")
    if kind == "Replace":
        pattern, content = step.get("pattern"), len(str(step.get("content", "")).encode())
        if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            return max(1.0, content / max(1, len(pattern["String"].encode())))
        return 1.0 + content  # a pattern may find nothing at all, between any two letters
    if kind == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")).encode())
    if kind == "Precompiled":
        return _precompiled_growth(b64decode(str(step.get("precompiled_charsmap", ""))))
    if kind == "Metaspace":  # a letter between two spaces gets a sign before it
        return 1.0 + len(str(step.get("replacement", "")).encode())
    return _KNOWN_GROWTH.get(str(kind), 1.0)


def _precompiled_growth(charsmap: bytes) -> float:
    """Return the growth by sentencepiece's map of characters: replacement to key, the worst.

    It is the size of a trie of keys (a double array of 32-bit units, as darts-clone lays it out),
    the trie, and the replacements, each up to a zero byte. Of keys of more than `_LONGEST_KEY`
    bytes, or in a trie of very many, the longest replacement counts.
    """
    size = int.from_bytes(charsmap[:4], "little")
    units = np.frombuffer(charsmap[4 : 4 + size // 4 * 4], np.uint32).astype(np.int64)
    replacements = charsmap[4 + size :]
    ends = np.array([n for n, byte in enumerate(replacements) if byte == 0], dtype=np.int64)
    longest = max(map(len, replacements.split(b"\0")))
    nodes = _children(units[:1], np.zeros(min(1, len(units)), np.int64))
    worst, letters = 1.0, np.arange(1, 256)
    for length in range(1, _LONGEST_KEY + 1):
        if len(nodes) > _MANY_KEYS:
            return max(worst, longest / length)
        places = (nodes[:, None] ^ letters).ravel()
        labels = np.tile(letters, len(nodes))
        inside = places < len(units)
        places, labels = places[inside], labels[inside]
        found = (units[places] & 0x800000FF) == labels
        places = places[found]
        nodes = np.unique(_children(units[places], places))
        leaves = _children(units[places], places)[(units[places] >> 8) & 1 == 1]
        starts = units[leaves[leaves < len(units)]] & 0x7FFFFFFF
        after = np.append(ends, len(replacements))[np.searchsorted(ends, starts)]
        worst = max(worst, float(np.max(after - starts, initial=0)) / length)
    return max(worst, longest / (_LONGEST_KEY + 1)) if len(nodes) else worst


def _children(units: Ints, places: Ints) -> Ints:
    """Return where the children of nodes begin: a child's place is that, XOR its letter."""
    return places ^ ((units >> 10) << ((units & 0x200) >> 6))


def _check_frame(steps: list[dict[str, Any]], where: Path) -> None:
    pieces = 0
    for step in steps:
        single = step.get("single")
        pieces += len(single) if isinstance(single, list) else 2
        special = step.get("special_tokens")
        for token in special.values() if isinstance(special, dict) else ():
            ids = token.get("ids") if isinstance(token, dict) else None
            pieces += max(0, len(ids) - 1) if isinstance(ids, list) else 0
        texts = [p for p in single if "Sequence" in p] if isinstance(single, list) else []
        if len(texts) > 1:
            raise ModelError(f"{where}: post_processor repeats a text; allowed: once")
    if pieces > MAX_FRAME:
        raise ModelError(
            f"{where}: post_processor puts {pieces} tokens around a text; allowed: {MAX_FRAME}"
        )


def _check_tokens(whole: Mapping[str, Any], where: Path) -> None:
    check_added(whole.get("added_tokens"), where)
    model = whole.get("model")
    if not isinstance(model, dict):
        return
    vocabulary = model.get("vocab")
    tokens = vocabulary if isinstance(vocabulary, list | dict) else ()
    if len(tokens) > MAX_TOKENS:
        raise ModelError(f"{where}: {len(tokens)} tokens; allowed: at most {MAX_TOKENS}")
    for token in tokens:
        _check_length(token[0] if isinstance(token, list) and token else token, where)
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        _check_length(model.get(name), where)


def _check_length(token: Any, where: Path) -> None:
    if isinstance(token, str) and len(token.encode(errors="surrogatepass")) > MAX_TOKEN:
        raise ModelError(f"{where}: a token of {len(token)} letters; allowed: {MAX_TOKEN} bytes")


def _check_padding(padding: Any, where: Path) -> None:
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    fixed = strategy.get("Fixed") if isinstance(strategy, dict) else None
    if isinstance(fixed, int) and fixed > 2**16:
        raise ModelError(f"{where}: padding to {fixed} tokens; allowed: at most {2**16}")


def check_pattern(pattern: str, where: str) -> None:
    """Raise ModelError for a regular expression whose search can take more than polynomial time.

    That is: a repeated group with a repetition or a choice in it, a reference back, more than
    `_MAX_OPEN` open repetitions or `_MAX_OPTIONAL` optional parts in one branch.
    """
    shown = f"{where}: pattern {pattern[:60]!r}"
    if len(pattern) > MAX_PATTERN:
        raise ModelError(f"{shown}: {len(pattern)} characters; allowed: at most {MAX_PATTERN}")
    if re.search(r"\\[1-9kg]|\(\?[~(]", pattern):
        raise ModelError(f"{shown}: refers to a group; allowed: patterns without references")
    levels: list[list[int]] = [[0, 0, 0]]  # a group's repetitions, choices; open ones of the branch
    closed: list[int] | None = None
    for sign in _tokens(pattern):
        if sign == "(":
            levels.append([0, 0, 0])
        elif sign == ")" and len(levels) > 1:
            closed = levels.pop()
            for place in range(2):
                levels[-1][place] += closed[place]
            levels[-1][2] += closed[2]
            continue
        elif sign == "|":
            levels[-1][1] += 1
            levels[-1][2] = 0
        elif sign[0] in "*+{" or sign[0] == "?":
            _check_repetition(sign, closed, levels[-1], shown)
        closed = None


def _check_repetition(token: str, closed: list[int] | None, level: list[int], shown: str) -> None:
    if token[0] != "?" and closed is not None and (closed[0] or closed[1]):
        raise ModelError(f"{shown}: repeats a group that has a repetition or a choice in it")
    bounds = [int(number) for number in re.findall(r"\d+", token)]
    if any(number > _MAX_COUNT for number in bounds):
        raise ModelError(f"{shown}: repeats {max(bounds)} times; allowed: {_MAX_COUNT}")
    level[0] += 1
    short = token[0] == "?" or (token[0] == "{" and not token.endswith(",}") and max(bounds) <= 8)
    level[2] += 1 if short else _OPEN
    if level[2] > _MAX_OPTIONAL:
        raise ModelError(
            f"{shown}: too many repetitions in one branch; allowed: {_MAX_OPEN} without end, or "
            f"{_MAX_OPTIONAL} optional parts"
        )


def _tokens(pattern: str) -> Iterator[str]:
    """Yield brackets, bars and repetitions; everything else as one letter."""
    place = 0
    while place < len(pattern):
        letter = pattern[place]
        if letter == "\\":
            named = re.match(r"\\[pPxu]\{[^}]*\}", pattern[place:])
            place += len(named[0]) if named else 2
            yield "."
        elif letter == "[":
            place = _end_of_class(pattern, place)
            yield "."
        elif letter == "(":
            start = re.match(r"\((?:\?(?:<?[=!]|>|[imxs-]*:|<\w+>))?", pattern[place:])
            place += len(start[0]) if start else 1
            yield "("
        elif letter == "{" and (count := re.match(r"\{\d*,?\d*\}", pattern[place:])):
            place += len(count[0])
            yield count[0]
        else:
            place += 1
            # a second sign, as in `+?`, says how the first one tries
            if (
                letter in "?+"
                and place > 1
                and pattern[place - 2] in "*+?}"
                and _is_sign(pattern, place - 2)
            ):
                continue
            yield letter if letter in "()|*+?" else "."


def _is_sign(pattern: str, place: int) -> bool:
    return place == 0 or pattern[place - 1] != "\\"


def _end_of_class(pattern: str, place: int) -> int:
    depth = 0
    while place < len(pattern):
        if pattern[place] == "\\":
            place += 1
        elif pattern[place] == "[":
            depth += 1
        elif pattern[place] == "]":
            depth -= 1
            if depth == 0:
                return place + 1
        place += 1
    return place
