"""Labels as files write them: numbers, numbers in writing, true and false."""

import re
from typing import Any

_WRITTEN = re.compile(r"[0-9]{1,18}(\.0*)?")
_TRUTH = {"true": 1, "false": 0}


def label_number(value: Any) -> int | None:
    """Return the number that a label is, or None for one that is no whole number from 0.

    Programs that write tables turn 1 into `1.0` (pandas, if a value is missing) or `True`.
    """
    if isinstance(value, str):
        written = value.strip()
        if _WRITTEN.fullmatch(written):
            return int(written.partition(".")[0])
        return _TRUTH.get(written.lower())
    if isinstance(value, float):
        return int(value) if value.is_integer() and value >= 0 else None
    return int(value) if isinstance(value, int) and value >= 0 else None
