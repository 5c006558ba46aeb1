"""Which kind of trigger fits which samples."""

from collections.abc import Sequence
from typing import Any

from recipe_ray.base.errors import TriggerError, unknown
from recipe_ray.triggers.patch import PatchTrigger
from recipe_ray.triggers.trigger import Trigger
from recipe_ray.triggers.word import WordTrigger

# by what a family of PTMs reads (`ModelRef.reads`); a plugin with other samples adds its own
KINDS: dict[str, type[Trigger]] = {"text": WordTrigger, "image": PatchTrigger}


def triggers_for(reads: str, written: Sequence[str], encode: Any) -> tuple[Trigger, ...]:
    """Return the triggers of their strings, checked, as samples of what a family reads carry them.

    Raises TriggerError as `Trigger.checked` does, and for samples that cannot carry any.
    """
    if not written:
        return ()
    if reads not in KINDS:
        raise TriggerError(unknown("kind of samples that carry triggers", reads, KINDS))
    return KINDS[reads].checked(written, encode)
