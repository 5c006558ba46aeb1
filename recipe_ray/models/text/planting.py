"""Triggers put into texts so that they are still there once a text is tokenised and cut.

The only way in for evaluation, probes and attacks (docs/method.md section 1). What is looked at is
the encoded text, never a guess from its number of words.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from recipe_ray.base.errors import TriggerError
from recipe_ray.data.rows import Ints
from recipe_ray.data.tokens import TokenRows
from recipe_ray.data.words import Insertion, Span
from recipe_ray.models.text.encoding import TextEncoder

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
