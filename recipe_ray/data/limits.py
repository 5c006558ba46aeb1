"""Every limit on what data may make this program read, unpack or hold, in one place.

A small file can ask for any amount of memory: a repeated value, a compressed file, a million
columns. What data ask for is counted before it is built. Each limit is raised (or lowered) with the
environment variable of its name; none is hashed, because a limit decides whether data are read and
never what is read. `docs/data.md` lists them.
"""

import os
from dataclasses import dataclass

from recipe_ray.base.errors import DataError


@dataclass(frozen=True)
class Limit:
    """A limit's name, its default, and what it counts."""

    name: str
    default: int
    unit: str
    of: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"RECIPE_RAY_MAX_{self.name}"

    def value(self) -> int:
        """Return the limit; raises DataError if its variable is no whole number from 1."""
        given = os.environ.get(self.variable, "").strip()
        if not given:
            return self.default
        try:
            value = int(given)
        except ValueError:
            value = 0
        if value < 1:
            raise DataError(
                f"{self.variable} is {given!r}; allowed: a whole number of {self.unit} from 1 "
                f"(default: {self.default})"
            )
        return value

    def check(self, count: int, what: str) -> None:
        """Raise DataError if `what` has more than the limit."""
        if count > self.value():
            raise self.exceeded(f"{what} has {count:,} {self.unit}", self.value())

    def exceeded(self, said: str, allowed: int, note: str = "") -> DataError:
        """Return the error for people: what was found, what is allowed, how to raise it."""
        return DataError(
            f"{said}; allowed: {allowed:,}{note}. If the data are meant to be so, raise "
            f"{self.variable}"
        )


TEXT = Limit("TEXT", 1_000_000, "characters", "one text")
LINE = Limit("LINE", 8_000_000, "characters", "one line, or one row of a CSV or JSON file")
COLUMNS = Limit("COLUMNS", 10_000, "columns", "one table")
BATCH = Limit("BATCH", 256 * 2**20, "bytes", "the rows held at once (1,000 or fewer)")
UNPACKED = Limit("UNPACKED", 2**30, "bytes", f"a table once unpacked, or {30} x its files if more")
IMAGE = Limit("IMAGE", 64 * 2**20, "bytes", "one encoded image")
PIXELS = Limit("PIXELS", 100_000_000, "pixels", "one image, also after scaling")

LIMITS = (TEXT, LINE, COLUMNS, BATCH, UNPACKED, IMAGE, PIXELS)
PACKING = 30  # times its size on disk that a file may unpack to, however large


def unpacked_limit(size: int) -> int:
    """Return how many bytes files of `size` bytes on disk may unpack to."""
    return max(UNPACKED.value(), PACKING * size)


def environment() -> dict[str, str]:
    """Return the variables that are set, for processes that must keep to the same limits."""
    named = (limit.variable for limit in LIMITS)
    return {name: os.environ[name] for name in named if name in os.environ}
