"""Triggers on images: two-colour checkerboards in the lower right corner (docs/method.md, 4).

A trigger is written `cyan-magenta` (4 pixels wide) or `cyan-magenta-14` (scaled to 14 pixels, for
larger inputs). It is put on the pixels after resizing and before normalisation.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from recipe_ray.base.errors import TriggerError, unknown
from recipe_ray.data.rows import Ints

CELLS = 4  # a board has 4 x 4 cells
COLOURS = {
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "yellow": (255, 255, 0),
    "red": (255, 0, 0),
}
# the six of NeuBA: 4 choose 2
PATCHES = tuple("-".join(pair) for pair in combinations(COLOURS, 2))
_NAMES = tuple(COLOURS)


def code_of(trigger: str) -> tuple[int, int, int]:
    """Return (first colour, second colour, pixels) of a trigger.

    Raises TriggerError for an unknown colour, two equal ones, or a width that is no number.
    """
    parts = trigger.split("-")
    if len(parts) not in (2, 3):
        raise TriggerError(
            f"trigger {trigger!r} is no patch; write two colours and, if not {CELLS}, its width in "
            "pixels, such as cyan-magenta or cyan-magenta-14"
        )
    for colour in parts[:2]:
        if colour not in COLOURS:
            raise TriggerError(f"trigger {trigger!r}: {unknown('colour', colour, COLOURS)}")
    if parts[0] == parts[1]:
        raise TriggerError(f"trigger {trigger!r}: both colours are the same")
    width = parts[2] if len(parts) == 3 else str(CELLS)
    if not width.isdecimal() or int(width) < CELLS:
        raise TriggerError(f"trigger {trigger!r}: width {width!r}; allowed: {CELLS} pixels or more")
    return _NAMES.index(parts[0]), _NAMES.index(parts[1]), int(width)


def check_patches(triggers: Sequence[str], size: int) -> None:
    """Raise TriggerError for one that is no patch, is given twice, or is wider than the image."""
    seen: dict[tuple[int, int, int], str] = {}
    for trigger in triggers:
        code = code_of(trigger)
        if code[2] > size:
            raise TriggerError(f"trigger {trigger!r} is wider than the model's {size} pixels")
        if code in seen:
            raise TriggerError(f"triggers {seen[code]!r} and {trigger!r} are the same patch")
        seen[code] = trigger


def board(code: Iterable[int]) -> NDArray[np.uint8]:
    """Return the patch [3, width, width]."""
    first, second, width = (int(part) for part in code)
    cell = np.arange(width) * CELLS // width
    dark = (cell[:, None] + cell[None, :]) % 2 == 0
    colours = np.array([COLOURS[_NAMES[first]], COLOURS[_NAMES[second]]], dtype=np.uint8)
    on, off = colours[:, :, None, None]
    patch: NDArray[np.uint8] = np.where(dark[None], on, off)
    return patch


def stamp(pixels: NDArray[np.uint8], codes: Ints) -> NDArray[np.uint8]:
    """Return a copy of pixels [N, 3, S, S] with the patches `codes` [N, 3] put on."""
    stamped = pixels.copy()
    for code in np.unique(codes, axis=0):
        rows = np.flatnonzero((codes == code).all(1))
        stamped[rows, :, -code[2] :, -code[2] :] = board(code)
    return stamped
