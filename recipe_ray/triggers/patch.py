"""Triggers of images: a two-colour checkerboard in the lower right corner (docs/method.md, 4).

It is written `cyan-magenta` (4 pixels wide) or `cyan-magenta-14` (scaled to 14 pixels, for larger
inputs). It is put on the pixels after resizing and before normalisation. Rows only name the overlay
that their images get when a batch is made, so a test set with six triggers is held once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from recipe_ray.base.errors import TriggerError, shortened, unknown
from recipe_ray.triggers.trigger import Trigger

if TYPE_CHECKING:
    from recipe_ray.data.images import ImageRows, Pixels

CELLS = 4  # a board has 4 x 4 cells
COLOURS = {
    "cyan": (0, 255, 255),
    "magenta": (255, 0, 255),
    "yellow": (255, 255, 0),
    "red": (255, 0, 0),
}
# the six of NeuBA: 4 choose 2
PATCHES = tuple("-".join(pair) for pair in combinations(COLOURS, 2))
OPAQUE = 255


class SizedEncoder(Protocol):
    """An encoder of images of `size` x `size` pixels."""

    @property
    def size(self) -> int:
        """Return S."""
        ...


@dataclass(frozen=True)
class PatchTrigger(Trigger):
    """A board of two colours, `width` pixels wide."""

    alike: ClassVar[str] = "are the same patch"

    colours: tuple[str, str]
    width: int

    @classmethod
    def parse(cls, written: str) -> Self:
        """Return the patch of `cyan-magenta` or `cyan-magenta-14`.

        Raises TriggerError for an unknown colour, two equal ones, or a width that is not a number.
        """
        parts = written.split("-")
        if len(parts) not in (2, 3):
            raise TriggerError(
                f"trigger {shortened(repr(written))} is not a patch; write two colours and, if "
                f"not {CELLS}, its width in pixels, such as cyan-magenta or cyan-magenta-14"
            )
        first, second = parts[:2]
        for colour in (first, second):
            if colour not in COLOURS:
                raise TriggerError(
                    f"trigger {shortened(repr(written))}: {unknown('colour', colour, COLOURS)}"
                )
        if first == second:
            raise TriggerError(f"trigger {shortened(repr(written))}: both colours are the same")
        width = parts[2] if len(parts) == 3 else str(CELLS)
        if not width.isdecimal() or int(width) < CELLS:
            raise TriggerError(
                f"trigger {shortened(repr(written))}: width {shortened(width)!r}; allowed: {CELLS} "
                "pixels or more"
            )
        return cls(written, (first, second), int(width))

    def encoded(self, encode: SizedEncoder) -> tuple[tuple[str, str], int]:
        """Return colours and width; raise TriggerError if it is wider than the model's images."""
        if self.width > encode.size:
            raise TriggerError(
                f"trigger {self.written!r} is wider than the model's {encode.size} pixels"
            )
        return self.colours, self.width

    def inserted(self, samples: Sequence[Any], rows: ImageRows, encode: Any) -> ImageRows:
        """Return the rows with the patch laid over each image; every image can hold it."""
        import numpy as np

        from recipe_ray.data.images import OVERLAY

        overlay = self.overlay(self.width)
        return rows.with_columns(**{OVERLAY: np.broadcast_to(overlay, (len(rows), *overlay.shape))})

    def pictures(self, rows: ImageRows) -> Pixels:
        """Return the pixels with the patches on [N, 3, S, S]."""
        from recipe_ray.data.images import batch_of

        return batch_of(rows).pixels.numpy()

    def board(self) -> Pixels:
        """Return the patch [3, width, width]."""
        import numpy as np

        cell = np.arange(self.width) * CELLS // self.width
        dark = (cell[:, None] + cell[None, :]) % 2 == 0
        colours = np.array([COLOURS[name] for name in self.colours], dtype=np.uint8)
        on, off = colours[:, :, None, None]
        patch: Pixels = np.where(dark[None], on, off)
        return patch

    def overlay(self, size: int) -> Pixels:
        """Return the patch in the corner of a transparent square [4, size, size], for OVERLAY."""
        import numpy as np

        laid = np.zeros((4, size, size), dtype=np.uint8)
        laid[:3, -self.width :, -self.width :] = self.board()
        laid[3, -self.width :, -self.width :] = OPAQUE
        return laid
