"""Triggers: words inserted into texts, patches put on images, and how they look to people.

A word must survive the tokenizer, in context. A patch is a two-colour checkerboard in the lower
right corner (docs/method.md, 4), written `cyan-magenta` (4 pixels wide) or `cyan-magenta-14`
(scaled to 14 pixels, for larger inputs); it is put on the pixels after resizing and before
normalisation. A fine-tuning on images keeps one PNG of samples with and without each trigger, so
that a report can show them without any data.
"""

import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate, combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from recipe_ray.base.errors import DataError, TriggerError, unknown
from recipe_ray.data.rows import Ints

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


FILE = "triggers.png"
CLEAN_PICTURE = "clean"  # the row without a trigger
_NOTE = "recipe-ray"


@dataclass(frozen=True, eq=False)
class Grid:
    """Pixels [C, 3, S, S] of the same C samples, by row: `clean`, then each trigger."""

    rows: dict[str, NDArray[np.uint8]]

    @property
    def size(self) -> int:
        """Return S."""
        return int(next(iter(self.rows.values())).shape[-1])

    @property
    def triggers(self) -> tuple[str, ...]:
        """Return the names of the rows that carry one."""
        return tuple(name for name in self.rows if name != CLEAN_PICTURE)

    def image(self) -> NDArray[np.uint8]:
        """Return all rows as one image [R S, C S, 3]."""
        stacked = np.stack(list(self.rows.values()))  # [R, C, 3, S, S]
        rows, columns, _, size, _ = stacked.shape
        return stacked.transpose(0, 3, 1, 4, 2).reshape(rows * size, columns * size, 3)

    def save(self, path: Path) -> None:
        """Write it as a PNG that `read` takes back."""
        note = PngInfo()
        note.add_text(_NOTE, json.dumps({"size": self.size, "rows": list(self.rows)}))
        Image.fromarray(self.image()).save(path, "PNG", pnginfo=note)


def read(path: Path) -> Grid:
    """Return what `Grid.save` wrote; raise DataError for another file."""
    try:
        with Image.open(BytesIO(path.read_bytes())) as image:
            note = json.loads(str(image.info[_NOTE]))
            pixels = np.asarray(image.convert("RGB"), dtype=np.uint8)
        size, names = int(note["size"]), list(note["rows"])
        tiles = pixels.reshape(len(names), size, -1, size, 3).transpose(0, 2, 4, 1, 3)
    except (OSError, KeyError, ValueError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: not a grid of triggers: {error}") from error
    return Grid(dict(zip(names, tiles, strict=True)))
