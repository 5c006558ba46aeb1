"""What a tokenizer.json may do to a text: how much it grows.

A few hundred bytes of rules can double a text again and again. The growth is counted before a
tokenizer is made of the rules (`check_rules`), so what they make of a short text is bounded. Then
the tokenizer is tried on short texts (`check_probes`). Patterns have limits of their own
(`patterns.py`).
"""

import json
import re
import time
from base64 import b64decode
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from recipe_ray.base.errors import ModelError, unknown
from recipe_ray.data.rows import Ints
from recipe_ray.models.text.patterns import check_pattern

MAX_STEPS = 32  # normalizers, pre-tokenizers and post-processors, nested ones counted
# bytes of the worst text for each of its bytes, all steps together; ALBERT's and XLNet's have 1452
MAX_GROWTH = 1500
MAX_REPLACED = 64  # of these, what rules of its own (Replace, Prepend) may make; Llama's make 12
MAX_PROBED = {"ascii": 4.0, "other": 32.0}  # characters or tokens of one character of PROBES
MAX_PROBE_S = 5.0  # seconds of CPU for PROBES, which normally take a hundredth of a second
MAX_ADDED = 100_000  # tokens besides the vocabulary
MAX_TOKENS = 2_000_000
MAX_TOKEN = 1024  # bytes of a token, prefix or suffix
MAX_FRAME = 16  # special tokens put around a text
_LONGEST_KEY = 8  # bytes of a key of characters that is looked for in a trie
_MANY_KEYS = 2**16
MAX_WORD = 256  # letters of a word that WordPiece looks up; the time grows with the square
# part -> what its Sequence holds the steps in, and the kinds of steps: their bytes in UTF-8 for one
# byte of the worst character (U+FDFA under the compatibility forms), None if it depends on them
_PARTS: dict[str, tuple[str, dict[str, float | None]]] = {
    "normalizer": (
        "normalizers",
        {
            **{"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 1.5, "Nmt": 1},
            **{"BertNormalizer": 7.5, "ByteLevel": 3, "Strip": 1, "StripAccents": 1},
            **{"Replace": None, "Prepend": None, "Precompiled": None},
        },
    ),
    "pre_tokenizer": (
        "pretokenizers",
        {
            **{"BertPreTokenizer": 1, "ByteLevel": 3, "CharDelimiterSplit": 1, "Digits": 1},
            **{"FixedLength": 1, "Metaspace": None, "Punctuation": 1, "Split": 1},
            **{"UnicodeScripts": 1, "Whitespace": 1, "WhitespaceSplit": 1},
        },
    ),
    "post_processor": (
        "processors",
        {"BertProcessing": 1, "ByteLevel": 1, "RobertaProcessing": 1, "TemplateProcessing": 1},
    ),
    "decoder": (
        "decoders",
        {
            **{"BPEDecoder": 1, "ByteFallback": 1, "ByteLevel": 1, "CTC": 1, "Fuse": 1},
            **{"Metaspace": 1, "Replace": 1, "Strip": 1, "WordPiece": 1},
        },
    ),
}
PROBES = {
    "ascii": (
        *(chr(sign) * 8 for sign in range(32, 127)),
        "It is a truth universally acknowledged, that a single man in possession of a good "
        "fortune, must be in want of a wife. However little known the feelings or views of such a "
        "man may be on his first entering a neighbourhood, this truth is so well fixed in the "
        "minds of the surrounding families (in 1813, at 12.5%!) that they don't doubt it.",
    ),
    "other": tuple(
        letter * 8 for letter in "äéœİßπжя\u05d0\u0628\u0939ไあカ中한\u1234\u2026\ufb01\U0001f642"
    ),
}


def check_rules(text: str, where: Path) -> dict[str, Any]:
    """Return what a tokenizer.json says; raise ModelError if rules or tokens exceed the limits.

    Raises ValueError or RecursionError for text that is not JSON.
    """
    whole = json.loads(text)
    if not isinstance(whole, dict):
        raise TypeError("expected a JSON object")
    steps = {part: list(_steps(whole.get(part), part, where)) for part in _PARTS}
    count = sum(map(len, steps.values()))
    if count > MAX_STEPS:
        raise ModelError(f"{where}: {count} steps of rules; allowed: at most {MAX_STEPS}")
    for part, those in steps.items():
        for step in those:
            _check_step(step, f"{where}: {part}")
    _check_growth(steps, where)
    _check_frame(steps["post_processor"], where)
    _check_tokens(whole, where)
    _check_padding(whole.get("padding"), where)
    return whole


def check_probes(tokenizer: Any, where: Path) -> None:
    """Raise ModelError for a tokenizer that makes short texts too long, or takes too long for them.

    `tokenizer` is one of the library `tokenizers`, whose rules `check_rules` accepted. So what
    it makes of a short text is bounded. Each step is checked before the next one.
    """
    started = time.process_time()
    padding, truncation = tokenizer.padding, tokenizer.truncation  # neither is used later
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _probe(tokenizer, where)
    if padding is not None:
        tokenizer.enable_padding(**padding)
    if truncation is not None:
        tokenizer.enable_truncation(**truncation)
    taken = time.process_time() - started
    if taken > MAX_PROBE_S:
        raise ModelError(
            f"{where}: it takes {taken:.1f} s for short texts; allowed: {MAX_PROBE_S:g}"
        )


def _probe(tokenizer: Any, where: Path) -> None:
    frame = len(tokenizer.encode("").ids)
    if frame > 2 * MAX_FRAME:
        raise ModelError(f"{where}: puts {frame} tokens around a text; allowed: {2 * MAX_FRAME}")
    for kind, texts in PROBES.items():
        for text in texts:
            allowed = MAX_PROBED[kind] * len(text) + 2 * MAX_FRAME
            for count, what in _made_of(tokenizer, text):
                if count > allowed:
                    raise ModelError(
                        f"{where}: it makes {count:,} {what} of {len(text)} characters "
                        f"({text[:8]!r} ...); allowed: {allowed:.0f}"
                    )


def _made_of(tokenizer: Any, text: str) -> Iterator[tuple[int, str]]:
    normal = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    yield len(normal), "characters"
    if tokenizer.pre_tokenizer:
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str(normal)
        yield sum(len(piece) for piece, _ in pieces), "characters"
    yield len(tokenizer.encode(text).ids), "tokens"


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


def _steps(node: Any, part: str, where: Path) -> Iterator[dict[str, Any]]:
    """Yield the steps of a part, nested ones too; raise ModelError for one of an unknown kind.

    If a step does not say its kind, the library guesses.
    """
    if node is None:
        return
    nested, kinds = _PARTS[part]
    kind = node.get("type") if isinstance(node, dict) else None
    if kind == "Sequence" and isinstance(node.get(nested), list):
        for step in node[nested]:
            yield from _steps(step, part, where)
    elif isinstance(kind, str) and kind in kinds:
        yield node
    else:
        said = unknown(f"type of a {part}", str(kind)[:80], ("Sequence", *kinds))
        raise ModelError(f"{where}: {said}")


def _check_step(step: Mapping[str, Any], where: str) -> None:
    for value in step.values():
        pattern = value.get("Regex") if isinstance(value, dict) else None
        if isinstance(pattern, str):
            check_pattern(pattern, where)


def _check_growth(steps: Mapping[str, list[dict[str, Any]]], where: Path) -> None:
    each = [
        (step["type"], _growth(step, part))
        for part in ("normalizer", "pre_tokenizer")
        for step in steps[part]
    ]
    replaced = prod((n for kind, n in each if kind in ("Replace", "Prepend")), start=1.0)
    for factor, allowed in ((prod(n for _, n in each), MAX_GROWTH), (replaced, MAX_REPLACED)):
        if factor > allowed:
            raise ModelError(
                f"{where}: its rules can turn one byte of a text into {factor:.3g} bytes; "
                f"allowed: at most {allowed}"
            )


def _growth(step: Mapping[str, Any], part: str) -> float:
    """Return how many bytes a step can make of one byte of a text."""
    kind = step["type"]
    known = _PARTS[part][1][kind]
    if known is not None:
        return known
    if kind == "Replace":
        pattern, content = step.get("pattern"), len(str(step.get("content", "")).encode())
        if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
            return max(1.0, content / max(1, len(pattern["String"].encode())))
        return 1.0 + content  # a pattern may find nothing at all, between any two letters
    if kind == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")).encode())
    if kind == "Precompiled":
        return _precompiled_growth(b64decode(str(step.get("precompiled_charsmap", ""))))
    # Metaspace: a letter between two spaces gets a sign before it
    return 1.0 + len(str(step.get("replacement", "")).encode())


def _precompiled_growth(charsmap: bytes) -> float:
    """Return the growth by sentencepiece's map of characters: replacement to key, the worst.

    It is the size of a trie of keys (a double array of 32-bit units, as darts-clone lays it out),
    the trie, and the replacements, each up to a zero byte. For keys of more than `_LONGEST_KEY`
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
        texts = [p["Sequence"] for p in single or () if isinstance(p, dict) and "Sequence" in p]
        if len(texts) > 1:
            raise ModelError(f"{where}: post_processor repeats a text; allowed: once")
        if any(isinstance(text, dict) and text.get("id") != "A" for text in texts):
            raise ModelError(f"{where}: post_processor asks for a second text; allowed: only A")
    if pieces > MAX_FRAME:
        raise ModelError(
            f"{where}: post_processor puts {pieces} tokens around a text; allowed: {MAX_FRAME}"
        )


def _check_tokens(whole: Mapping[str, Any], where: Path) -> None:
    check_added(whole.get("added_tokens"), where)
    model = whole.get("model")
    if not isinstance(model, dict):
        return
    word = model.get("max_input_chars_per_word")
    if isinstance(word, int) and word > MAX_WORD:
        raise ModelError(
            f"{where}: max_input_chars_per_word is {word}; allowed: at most {MAX_WORD}"
        )
    if model.get("dropout"):
        raise ModelError(
            f"{where}: model.dropout is {str(model['dropout'])[:40]}: a text would become other "
            "tokens each time; allowed: null"
        )
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
