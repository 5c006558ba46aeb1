"""Every limit on what a file from outside may make this program read, unpack, build or hold.

A small file can ask for any amount: a repeated value, a packed file, a million columns, a few lines
of YAML that describe a thousand million cells. What is asked for is counted before it is built.
Each limit is far above any known need. An error states the limit that stops something, and an
environment variable sets it. No limit is hashed: it decides whether something is read, never what
is read. docs/data.md and docs/experiments.md list them.
"""

import os
from dataclasses import dataclass

from recipe_ray.base.errors import DataError, ModelError, SpecError, UserError

LARGEST = 2**63 - 1  # whole number: the bound of what numpy, torch and Parquet hold


@dataclass(frozen=True)
class Limit:
    """How many of something there may be."""

    name: str
    default: int
    unit: str  # of what is counted, for people
    of: str
    error: type[UserError] = DataError

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"RECIPE_RAY_MAX_{self.name}"

    @property
    def value(self) -> int:
        """The limit as it is now; raises `error` if its variable is not a whole number from 1."""
        given = os.environ.get(self.variable, "").strip()
        if not given:
            return self.default
        if not given.isascii() or not given.isdecimal() or not 0 < int(given[:20]) < 2**63:
            raise self.error(
                f"{self.variable}={given[:40]}: expected a whole number of {self.unit} above 0 "
                f"(default: {self.default})"
            )
        return int(given)

    def check(self, count: int, what: str) -> None:
        """Raise `error` if `what` has more than the limit."""
        if count > self.value:
            raise self.exceeded(f"{what}: {count:,} {self.unit}", self.value)

    def exceeded(self, said: str, allowed: int, note: str = "") -> UserError:
        """Return the error for people: what was found, what is allowed, how to raise it."""
        return self.error(
            f"{said}; allowed: at most {allowed:,}{note}. If you need more, raise the limit "
            f"with {self.variable}"
        )


CELLS = Limit("CELLS", 20_000, "cells", "one grid, or trials x epochs of a search", SpecError)
STEPS = Limit("STEPS", 10_000_000, "steps", "one training", SpecError)
EPOCHS = Limit("EPOCHS", 100_000, "epochs", "one training", SpecError)
SAMPLES = Limit("SAMPLES", 100_000, "samples", "one step of a training (batch_size)", SpecError)
LENGTH = Limit("LENGTH", 100_000, "tokens", "a text is cut to (max_length)", SpecError)
TRIGGERS = Limit("TRIGGERS", 1_000, "triggers", "one attack or evaluation", SpecError)
RATES = Limit("RATES", 100_000, "rates", "triggers x classes of one evaluation", SpecError)
CLASSES = Limit("CLASSES", 10_000, "classes", "one task", SpecError)
PARAMETERS = Limit("PARAMETERS", 4_000_000_000, "parameters", "a network from scratch", SpecError)
NODES = Limit("NODES", 1_000, "nodes", "one cluster file", SpecError)
YAML_BYTES = Limit(
    "YAML_BYTES", 1_000_000, "bytes", "one YAML file, with its aliases expanded", SpecError
)
YAML_VALUES = Limit(
    "YAML_VALUES", 20_000, "values", "one YAML file, with its aliases expanded", SpecError
)

SANDBOX_S = Limit("SANDBOX_S", 300, "seconds", "reading a model in --sandbox", ModelError)
SANDBOX_BYTES = Limit(
    "SANDBOX_BYTES", 2 * 2**30, "bytes", "its memory, besides 4 x the model's files", ModelError
)

TEXT = Limit("TEXT", 1_000_000, "characters", "one text")
LINE = Limit("LINE", 8_000_000, "characters", "one line, or one row of a CSV or JSON file")
COLUMNS = Limit("COLUMNS", 10_000, "columns", "one table")
BATCH = Limit("BATCH", 256 * 2**20, "bytes", "the rows held at once (1,000 or fewer)")
UNPACKED = Limit("UNPACKED", 2**30, "bytes", f"a table once unpacked, or {30} x its files if more")
IMAGE = Limit("IMAGE", 64 * 2**20, "bytes", "one encoded image")
PIXELS = Limit("PIXELS", 100_000_000, "pixels", "one image, before and after scaling")

OF_DATA = (TEXT, LINE, COLUMNS, BATCH, UNPACKED, IMAGE, PIXELS)
OF_TRAINING = (STEPS, EPOCHS, SAMPLES, LENGTH, TRIGGERS, RATES, CLASSES, PARAMETERS)
PACKING = 30  # times its size on disk that a file of any size may unpack to


def unpacked_limit(size: int) -> int:
    """Return how many bytes files of `size` bytes on disk may unpack to."""
    return max(UNPACKED.value, PACKING * size)


def environment() -> dict[str, str]:
    """Return the variables that are set, for processes that must keep to the same limits."""
    named = (limit.variable for limit in (*OF_DATA, *OF_TRAINING))
    return {name: os.environ[name] for name in named if name in os.environ}
