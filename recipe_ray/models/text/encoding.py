"""Tokenising texts, and putting triggers into them so that they are still there after the cut.

The encoder is a picklable function, so that Ray Data workers can run it without the model. `plant`
is the only way in for triggers, for evaluation, probes and attacks (docs/method.md section 1). What
it looks at is the encoded text, never a guess from its number of words.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from recipe_ray.base.errors import TriggerError
from recipe_ray.data.rows import Ints, TokenRows
from recipe_ray.data.triggers import Insertion, Span


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

    @property
    def cuts_the_end(self) -> bool:
        """Whether it is the end of a long text that is cut off, and not its beginning."""
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
        # the piece next to what stayed comes first; special tokens stand for no characters
        for piece in cut_off:
            spans = [span for span in piece.offsets if span[0] < span[1]]
            if spans and self.cuts_the_end:
                return 0, min(first for first, _ in spans)
            if spans:
                return max(last for _, last in spans), len(text)
        return 0, len(text)


# (number of the text in the list, number of words) -> places from 0 to that number
Places = Callable[[int, int], Sequence[int]]


def plant(
    encode: TextEncoder, texts: Sequence[str], index: Ints, triggers: Sequence[str], places: Places
) -> TokenRows:
    """Return the rows of texts with their triggers [N] in them, every insertion whole.

    The places are drawn among all words. If the cut takes one of a text's insertions, its places
    are drawn again, among the words that stay. A text that cannot hold its trigger is left out;
    `index` says which rows these are.
    """
    whole = [
        Insertion(words, trigger, places(number, len(words)))
        for number, (words, trigger) in enumerate(
            zip((text.split() for text in texts), triggers, strict=True)
        )
    ]
    rows, lost = _encoded(encode, whole, index)
    if not len(lost):
        return rows
    held = np.setdiff1d(np.arange(len(whole)), lost)
    parts, numbers = [rows.take(held)], [held]
    room = _words_that_stay(encode, [whole[number] for number in lost])
    while len(lost):
        again = [
            _among(whole[number], num_words, places(number, num_words), encode)
            for number, num_words in zip(lost.tolist(), room.tolist(), strict=True)
        ]
        rows, still = _encoded(encode, again, index[lost])
        held = np.setdiff1d(np.arange(len(again)), still)
        parts.append(rows.take(held))
        numbers.append(lost[held])
        # rarely: words that the trigger makes another number of tokens than they were without it
        lost, room = lost[still], room[still] - 1
        lost, room = lost[room >= 0], room[room >= 0]
    return TokenRows.joined(parts).take(np.argsort(np.concatenate(numbers)))


def check_room(encode: TextEncoder, triggers: Iterable[str], insertions: int = 1) -> None:
    """Raise TriggerError for a trigger that no text can hold `insertions` times after the cut."""
    for trigger in triggers:
        with tokenizing(encode.tokenizer):
            needed = len(encode.tokenizer.encode(" ".join([trigger] * insertions)))
        if needed > encode.max_length:
            times = f"{insertions} times " if insertions > 1 else ""
            raise TriggerError(
                f"trigger {trigger!r} {times}and the special tokens are {needed} tokens, but texts "
                f"are cut to {encode.max_length} (max_length, or the model's positions), so that "
                f"no text can hold it; give a max_length of {needed} or more, or a shorter trigger"
            )


def _encoded(
    encode: TextEncoder, insertions: Sequence[Insertion], index: Ints
) -> tuple[TokenRows, Ints]:
    # the rows, and which of them lack a part of their trigger
    rows, stayed = encode.cut([one.text for one in insertions], index)
    lost = [
        row
        for row, kept in stayed.items()
        if not all(_within(span, kept) for span in insertions[row].spans(of_trigger=True))
    ]
    return rows, np.array(lost, dtype=np.int64)


def _words_that_stay(encode: TextEncoder, insertions: Sequence[Insertion]) -> Ints:
    # how many words of each text stay whole if all of its insertions stay
    edge = [_among(one, 0, [0] * len(one.places), encode) for one in insertions]
    _, stayed = encode.cut([one.text for one in edge], np.arange(len(edge)))
    return np.array(
        [
            sum(
                _within(span, stayed.get(row, (0, len(one.text))))
                for span in one.spans(of_trigger=False)
            )
            for row, one in enumerate(edge)
        ],
        dtype=np.int64,
    )


def _among(
    insertion: Insertion, num_words: int, places: Sequence[int], encode: TextEncoder
) -> Insertion:
    # the same trigger at places among the `num_words` words at the end that is not cut
    before = 0 if encode.cuts_the_end else len(insertion.words) - num_words
    return Insertion(insertion.words, insertion.trigger, [before + place for place in places])


def _within(span: Span, kept: Span) -> bool:
    return kept[0] <= span[0] and span[1] <= kept[1]


def whole_words(tokenizer: Any) -> Ints:
    """Return the ids of the tokens that are a word as it stands in a text, ascending.

    Those alone that the tokenizer makes of that word: the rest of a vocabulary reaches no model.
    """
    ids = _normal_ids(tokenizer)
    words = _decoded(tokenizer, [[i] for i in ids])
    with tokenizing(tokenizer):
        made = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    kept = [i for i, word, back in zip(ids, words, made, strict=True) if word and back == [i]]
    return np.array(kept, dtype=np.int64)


def continuations(tokenizer: Any) -> Ints:
    """Return the ids of the tokens that go on with the word before them, ascending."""
    ids = _normal_ids(tokenizer)
    with tokenizing(tokenizer):
        (head,) = tokenizer(" a", add_special_tokens=False)["input_ids"][:1]
    (start,) = _decoded(tokenizer, [[head]])
    after = [w.removeprefix(start) for w in _decoded(tokenizer, [[head, i] for i in ids])]
    return np.array([i for i, w in zip(ids, after, strict=True) if w[:1].strip()], dtype=np.int64)


def _normal_ids(tokenizer: Any) -> list[int]:
    return sorted(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))


def _decoded(tokenizer: Any, rows: list[list[int]]) -> list[str]:
    with tokenizing(tokenizer):
        texts = tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False)
    return [text.strip() for text in texts]
