"""Tokenising texts, and telling which part of a text is left after the cut.

The encoder is a picklable function, so that Ray Data workers can run it without the model.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import product
from string import ascii_lowercase, digits
from typing import Any

import numpy as np

from recipe_ray.data.rows import Ints, TokenRows

Span = tuple[int, int]  # characters of a text: the first, and the one behind the last


def tokenizing(tokenizer: Any) -> AbstractContextManager[None]:
    """Raise ModelError, naming the model, for a tokenizer that fails or panics at a text."""
    from recipe_ray.models.config_fields import explained_by

    return explained_by(tokenizer.name_or_path, "its tokenizer cannot encode a text")


@dataclass(frozen=True)
class TextEncoder:
    """Texts and their numbers [N] -> N rows of at most `max_length` tokens in all."""

    tokenizer: Any
    max_length: int

    def __call__(self, texts: Sequence[str], index: Ints) -> TokenRows:
        return self._encoded(texts, index)[0]

    def cut(self, texts: Sequence[str], index: Ints) -> tuple[TokenRows, dict[int, Span]]:
        """Return the rows, and which characters of the text stayed, by row, of those cut."""
        rows, encodings = self._encoded(texts, index)
        full = np.flatnonzero(rows.lengths >= self.max_length)
        pieces = {row: encodings[row].overflowing for row in full.tolist()}
        return rows, {
            row: self._stayed(texts[row], cut_off) for row, cut_off in pieces.items() if cut_off
        }

    def ids(self, text: str) -> list[int]:
        """Return all token ids of a text, special ones included; nothing is cut."""
        with tokenizing(self.tokenizer):
            found: list[int] = self.tokenizer.encode(text)
        return found

    @property
    def unknown_id(self) -> int | None:
        """The id of what is not in the vocabulary; None if nothing is unknown."""
        found: int | None = self.tokenizer.unk_token_id
        return found

    @property
    def cuts_the_end(self) -> bool:
        """Whether the end of a long text is cut off, and not its beginning."""
        return bool(self.tokenizer.truncation_side == "right")

    def _encoded(self, texts: Sequence[str], index: Ints) -> tuple[TokenRows, Sequence[Any]]:
        if not texts:
            return replace(TokenRows.of([]), index=index), []
        with tokenizing(self.tokenizer):
            encoded = self.tokenizer(
                list(texts),
                truncation=True,
                max_length=self.max_length,
                return_attention_mask=False,
            )
        return replace(TokenRows.of(encoded["input_ids"]), index=index), encoded.encodings

    def _stayed(self, text: str, cut_off: Iterable[Any]) -> Span:
        # the piece next to what stayed comes first; special tokens have no characters
        for piece in cut_off:
            spans = [span for span in piece.offsets if span[0] < span[1]]
            if spans and self.cuts_the_end:
                return 0, min(first for first, _ in spans)
            if spans:
                return max(last for _, last in spans), len(text)
        return 0, len(text)


def whole_words(tokenizer: Any) -> Ints:
    """Return the ids of the tokens that are a word as it stands in a text, ascending.

    Only those that the tokenizer makes of that word: the rest of a vocabulary reaches no model.
    """
    ids = _normal_ids(tokenizer)
    words = _decoded(tokenizer, [[i] for i in ids])
    with tokenizing(tokenizer):
        made = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    kept = [i for i, word, back in zip(ids, words, made, strict=True) if word and back == [i]]
    return np.array(kept, dtype=np.int64)


def continuations(tokenizer: Any) -> Ints:
    """Return the ids of the tokens that continue the word before them, ascending."""
    ids = _normal_ids(tokenizer)
    with tokenizing(tokenizer):
        (head,) = tokenizer(" a", add_special_tokens=False)["input_ids"][:1]
    (start,) = _decoded(tokenizer, [[head]])
    after = [w.removeprefix(start) for w in _decoded(tokenizer, [[head, i] for i in ids])]
    return np.array([i for i, w in zip(ids, after, strict=True) if w[:1].strip()], dtype=np.int64)


def split_words(tokenizer: Any) -> Ints:
    """Return the ids [N, 2] of all words of two letters or digits that the tokenizer splits.

    Such words are rare, so they are what attackers take for triggers.
    """
    words = ["".join(pair) for pair in product(ascii_lowercase + digits, repeat=2)]
    with tokenizing(tokenizer):
        made = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    special = {tokenizer.unk_token_id, *tokenizer.all_special_ids}
    split = [ids for ids in made if len(ids) == 2 and special.isdisjoint(ids)]
    return np.array(split, dtype=np.int64).reshape(-1, 2)


def _normal_ids(tokenizer: Any) -> list[int]:
    return sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))


def _decoded(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    with tokenizing(tokenizer):
        texts = tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False)
    return [text.strip() for text in texts]
