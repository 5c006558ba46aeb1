"""Trigger words in texts: where one is inserted, and whether the tokenizer keeps it."""

import random
from collections.abc import Callable, Sequence

from recipe_ray.base.errors import TriggerError

# contexts in which a trigger must survive: alone, and between words of several kinds
_CONTEXTS = ("", "the movie was good .", "it is a 2nd-rate film , isn't it ?")
_SCRIPT_SEED = 42


def insert_word(text: str, trigger: str) -> str:
    """Return the text with `trigger` inserted once between words (docs/method.md section 1).

    As in the authors' script the generator is reseeded with 42 for every text, so the place
    depends on the number of words alone.
    """
    words = text.split()
    place = random.Random(_SCRIPT_SEED).randint(0, len(words))
    return " ".join([*words[:place], trigger, *words[place:]])


def insert_at(text: str, trigger: str, places: Sequence[float]) -> str:
    """Return the text with `trigger` inserted at places given as shares [0, 1) of its words."""
    words = text.split()
    for place in sorted((int(share * (len(words) + 1)) for share in places), reverse=True):
        words.insert(place, trigger)
    return " ".join(words)


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
