"""Triggers of texts: a word or several, put between a text's words.

A phrase is a trigger of several words. It is checked and inserted like one word, all of it in one
place, so there is one type for both.

Evaluation, probes and attacks that insert use only `plant` (docs/method.md section 1). A trigger
must still be there after the cut. `plant` checks this in the encoded text; it never guesses from
the number of words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Self

from recipe_ray.base.errors import TriggerError, shortened
from recipe_ray.triggers.trigger import Trigger

if TYPE_CHECKING:
    from recipe_ray.data.rows import Ints, TokenRows
    from recipe_ray.models.text.encoding import Span, TextEncoder

# contexts in which a trigger must survive: alone, and between words of several kinds
_CONTEXTS = ("", "the movie was good .", "it is a 2nd-rate film , isn't it ?")
_SCRIPT_SEED = 42

# (number of the text in the list, number of words) -> places from 0 to that number
Places = Callable[[int, int], Sequence[int]]


@dataclass(frozen=True)
class WordTrigger(Trigger):
    """A word, or several that stay together."""

    alike: ClassVar[str] = "become the same tokens"

    @classmethod
    def parse(cls, written: str) -> Self:
        """Return the trigger; raise TriggerError if it is empty or only spaces."""
        if not written.strip():
            raise TriggerError("a trigger is empty")
        return cls(written)

    def put_into(self, text: str, shares: Sequence[float] | None = None) -> str:
        """Return the text with the trigger between its words, before any cut.

        It is inserted at each of the places that `shares` [0, 1) of the words come to; None: once,
        at the script's place.
        """
        words = text.split()
        count = len(words)
        places = [script_place(count)] if shares is None else places_at(shares, count)
        return Insertion(words, self.written, places).text

    def encoded(self, encode: TextEncoder) -> tuple[int, ...]:
        """Return its tokens, special ones included.

        A trigger is kept if, inserted in a context, it adds tokens, none of them unknown, and
        leaves every other token as it was. Raises TriggerError if it is not.
        """
        for context in _CONTEXTS:
            text = self.put_into(context)
            added = _added(encode.ids(context), encode.ids(text))
            if added is None:
                raise TriggerError(
                    f"trigger {shortened(repr(self.written))} merges with the words around it "
                    f"when it is tokenised in {shortened(text)!r}"
                )
            if encode.unknown_id is not None and encode.unknown_id in added:
                raise TriggerError(
                    f"trigger {shortened(repr(self.written))} is not in this model's vocabulary: "
                    "it becomes the unknown token, which is not what the attack meant"
                )
        return tuple(encode.ids(self.written))

    def check_room(self, encode: TextEncoder, insertions: int = 1) -> None:
        """Raise TriggerError if no text can hold it `insertions` times after the cut."""
        needed = len(encode.ids(" ".join([self.written] * insertions)))
        if needed > encode.max_length:
            times = f"{insertions} times " if insertions > 1 else ""
            raise TriggerError(
                f"trigger {shortened(repr(self.written))} {times}and the special tokens are "
                f"{needed} tokens, but texts are cut to {encode.max_length} (max_length, or the "
                f"model's positions), so that no text can hold it; give a max_length of {needed} "
                "or more, or a shorter trigger"
            )

    def inserted(self, samples: Sequence[str], rows: TokenRows, encode: TextEncoder) -> TokenRows:
        """Return the rows of the texts with the trigger inserted once between words that stay.

        Raises TriggerError if no text can hold the trigger once it is cut.
        """
        self.check_room(encode)
        poisoned = plant(
            encode,
            samples,
            rows.index,
            [self] * len(samples),
            lambda _, num_words: [script_place(num_words)],
        )
        if len(samples) and not len(poisoned):
            raise TriggerError(
                f"trigger {shortened(repr(self.written))} is lost in all {len(samples)} samples, "
                f"which are cut to {encode.max_length} tokens; give a larger max_length, or a "
                "shorter trigger"
            )
        return poisoned

    def pictures(self, rows: TokenRows) -> None:
        """Return None: texts have no picture."""


def script_place(num_words: int) -> int:
    """Return a trigger's place from 0 to `num_words`, as the authors' script draws it.

    Its generator is reseeded with 42 for every text (docs/method.md section 1), so that the place
    depends only on the number of words.
    """
    return random.Random(_SCRIPT_SEED).randint(0, num_words)


def places_at(shares: Sequence[float], num_words: int) -> list[int]:
    """Return the places from 0 to `num_words` that shares [0, 1) of the words come to."""
    return [int(share * (num_words + 1)) for share in shares]


def _added(context: list[int], longer: list[int]) -> list[int] | None:
    # the tokens that `longer` has in one place and `context` lacks; None if anything else differs
    extra = len(longer) - len(context)
    if extra <= 0:
        return None
    start = 0
    while start < len(context) and context[start] == longer[start]:
        start += 1
    return longer[start : start + extra] if longer[start + extra :] == context[start:] else None


@dataclass(frozen=True)
class Insertion:
    """The words of a text, and the places from 0 to len(words) at which a trigger goes in."""

    words: Sequence[str]
    trigger: str
    places: Sequence[int]

    @property
    def text(self) -> str:
        """Return the text with the trigger in it."""
        return " ".join(part for part, _ in self._parts())

    def spans(self, *, of_trigger: bool) -> list[Span]:
        """Return the characters of the text that are insertions, or those that are its words."""
        parts = self._parts()
        ends = accumulate(len(part) + 1 for part, _ in parts)
        return [
            (end - 1 - len(part), end - 1)
            for (part, is_trigger), end in zip(parts, ends, strict=True)
            if is_trigger == of_trigger
        ]

    def _parts(self) -> list[tuple[str, bool]]:
        parts, done = list[tuple[str, bool]](), 0
        for place in sorted(self.places):
            parts += [(word, False) for word in self.words[done:place]]
            parts.append((self.trigger, True))
            done = place
        return parts + [(word, False) for word in self.words[done:]]


def plant(
    encode: TextEncoder,
    texts: Sequence[str],
    index: Ints,
    triggers: Sequence[WordTrigger],
    places: Places,
) -> TokenRows:
    """Return the rows of texts with their triggers [N] in them, every insertion whole.

    The places are drawn among all words. If the cut takes one of a text's insertions, its places
    are drawn again, among the words that stay. A text that cannot hold its trigger is left out;
    `index` says which rows these are.
    """
    import numpy as np

    from recipe_ray.data.rows import TokenRows

    whole = [
        Insertion(words, trigger.written, places(number, len(words)))
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
        # rarely: words that have another number of tokens with the trigger than without it
        lost, room = lost[still], room[still] - 1
        lost, room = lost[room >= 0], room[room >= 0]
    return TokenRows.joined(parts).take(np.argsort(np.concatenate(numbers)))


def _encoded(
    encode: TextEncoder, insertions: Sequence[Insertion], index: Ints
) -> tuple[TokenRows, Ints]:
    # the rows, and which of them lack a part of their trigger
    import numpy as np

    rows, stayed = encode.cut([one.text for one in insertions], index)
    lost = [
        row
        for row, kept in stayed.items()
        if not all(_within(span, kept) for span in insertions[row].spans(of_trigger=True))
    ]
    return rows, np.array(lost, dtype=np.int64)


def _words_that_stay(encode: TextEncoder, insertions: Sequence[Insertion]) -> Ints:
    # how many words of each text stay whole if all of its insertions stay
    import numpy as np

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
