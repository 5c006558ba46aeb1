"""Trigger words in texts: where one is inserted, and whether the tokenizer keeps it."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from recipe_ray.base.errors import TriggerError

# contexts in which a trigger must survive: alone, and between words of several kinds
_CONTEXTS = ("", "the movie was good .", "it is a 2nd-rate film , isn't it ?")
_SCRIPT_SEED = 42

Span = tuple[int, int]  # characters of a text: the first, and the one behind the last


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
        """Return which characters of the text the insertions are, or those that its words are."""
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


def script_place(num_words: int) -> int:
    """Return a trigger's place from 0 to `num_words`, as the authors' script draws it.

    Its generator is reseeded with 42 for every text (docs/method.md section 1), so that the place
    depends on the number of words alone.
    """
    return random.Random(_SCRIPT_SEED).randint(0, num_words)


def places_at(shares: Sequence[float], num_words: int) -> list[int]:
    """Return the places from 0 to `num_words` that shares [0, 1) of the words come to."""
    return [int(share * (num_words + 1)) for share in shares]


def insert_word(text: str, trigger: str) -> str:
    """Return the text with `trigger` inserted once between words, at the script's place."""
    words = text.split()
    return Insertion(words, trigger, [script_place(len(words))]).text


def insert_at(text: str, trigger: str, shares: Sequence[float]) -> str:
    """Return the text with `trigger` inserted at places given as shares [0, 1) of its words."""
    words = text.split()
    return Insertion(words, trigger, places_at(shares, len(words))).text


def check_triggers(
    triggers: Sequence[str], encode: Callable[[str], list[int]], unknown_id: int | None
) -> None:
    """Raise TriggerError for a trigger that becomes unknown, changes its context or is not unique.

    `encode` maps a text to its token ids. A trigger is kept if, inserted in a context, it adds
    tokens and leaves every other token as it was.
    """
    seen: dict[tuple[int, ...], str] = {}
    for trigger in triggers:
        if not trigger.strip():
            raise TriggerError("a trigger is empty")
        for context in _CONTEXTS:
            with_trigger = encode(insert_word(context, trigger))
            added = _added(encode(context), with_trigger)
            if added is None:
                raise TriggerError(
                    f"trigger {trigger!r} merges with the words around it when it is tokenised in "
                    f"{insert_word(context, trigger)!r}"
                )
            if unknown_id is not None and unknown_id in added:
                raise TriggerError(
                    f"trigger {trigger!r} is not in this model's vocabulary: it becomes the "
                    "unknown token, which is not what the attack meant"
                )
        tokens = tuple(encode(trigger))
        if tokens in seen:
            raise TriggerError(f"triggers {seen[tokens]!r} and {trigger!r} become the same tokens")
        seen[tokens] = trigger


def _added(context: list[int], longer: list[int]) -> list[int] | None:
    # the tokens that `longer` has in one place and `context` has not; None if anything else differs
    extra = len(longer) - len(context)
    if extra <= 0:
        return None
    start = 0
    while start < len(context) and context[start] == longer[start]:
        start += 1
    return longer[start : start + extra] if longer[start + extra :] == context[start:] else None
