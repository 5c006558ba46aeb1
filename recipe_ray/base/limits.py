"""Limits on what a file may ask for, counted before anything of that size is built.

A few lines of YAML can describe a thousand million cells. Each limit is far above what anybody was
seen to need, is stated where it stops something, and is raised by an environment variable.
"""

import os
from dataclasses import dataclass

from recipe_ray.base.errors import SpecError


@dataclass(frozen=True)
class Limit:
    """How many of something there may be; `variable` raises it."""

    variable: str
    default: int
    unit: str  # of what is counted, for people

    @property
    def value(self) -> int:
        """The limit as it is now; raises SpecError where the variable holds no number."""
        given = os.environ.get(self.variable)
        if given is None:
            return self.default
        if not given.isascii() or not given.isdecimal() or not 0 < int(given[:20]) < 2**63:
            raise SpecError(f"{self.variable}={given[:40]}: expected a whole number above 0")
        return int(given)

    def check(self, count: int, what: str) -> None:
        """Raise SpecError if `what`, the subject of the sentence, comes to more than the limit."""
        if count > self.value:
            raise SpecError(
                f"{what}: {count:,} {self.unit}; at most {self.value:,} are allowed "
                f"({self.variable} raises the limit)"
            )


CELLS = Limit("RECIPE_RAY_MAX_CELLS", 20_000, "cells")
NODES = Limit("RECIPE_RAY_MAX_NODES", 1_000, "nodes")
YAML_BYTES = Limit("RECIPE_RAY_MAX_YAML_BYTES", 1_000_000, "bytes")
YAML_VALUES = Limit("RECIPE_RAY_MAX_YAML_VALUES", 20_000, "values")
