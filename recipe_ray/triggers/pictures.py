"""How triggers look: one PNG of the same samples without and with each trigger.

A fine-tuning on images keeps one, so that a report can show the triggers without any data.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from recipe_ray.base.errors import DataError
from recipe_ray.data.rows import Ints, Rows
from recipe_ray.triggers.trigger import Trigger

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


def drawn(
    triggers: Sequence[Trigger], clean: Rows, poisoned: Mapping[str, Rows], shown: Ints
) -> Grid | None:
    """Return the grid of the samples numbered `shown`; None if there are no samples.

    `poisoned` has the rows with each trigger, by its string.
    """
    pictures = {}
    for trigger in triggers:
        for name, rows in ((CLEAN_PICTURE, clean), (trigger.written, poisoned[trigger.written])):
            if name not in pictures:
                some = rows.take(np.flatnonzero(np.isin(rows.index, shown)))
                pictures[name] = trigger.pictures(some)
    found = {name: pixels for name, pixels in pictures.items() if pixels is not None}
    return Grid(found) if found else None


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
