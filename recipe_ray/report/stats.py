"""Result rows grouped by what they share; a mean over seeds with its 95 % Student t interval."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import chain
from math import cos, pi, sin, sqrt, tan
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

CONFIDENCE = 0.95
Row = dict[str, Any]
N = TypeVar("N", bound="DataclassInstance")


def grouped(
    results: pa.Table, metrics: Mapping[str, Collection[str]], name: type[N]
) -> dict[N, dict[str, list[Row]]]:
    """Return the rows with the metrics of each kind, by name and then by stage.

    The fields of `name` are columns. Cells that share a stage repeat its rows, so a stage's list
    may hold the same value again.
    """
    some = pa.array(sorted(set(chain.from_iterable(metrics.values()))), pa.string())
    kinds = pc.is_in(results["kind"], pa.array(list(metrics), pa.string()))
    columns = [field.name for field in fields(name)]
    groups: dict[tuple[Any, ...], dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in results.filter(pc.and_(kinds, pc.is_in(results["metric"], some))).to_pylist():
        if row["metric"] in metrics[row["kind"]]:
            groups[tuple(row[column] for column in columns)][row["stage"]].append(row)
    make: Callable[..., N] = name
    return {make(*values): stages for values, stages in groups.items()}


@dataclass(frozen=True)
class Estimate:
    """Mean of `n` values and its interval; `low` and `high` are None if n is 1.

    The interval is not cut at 0 and 1: at the edge it shows how little a few seeds tell.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def margin(self) -> float | None:
        """Half the width of the interval."""
        return None if self.high is None else self.high - self.mean


def pooled(values: Iterable[float | None]) -> Estimate | None:
    """Return mean and interval of the values that were measured (not None), None if none was."""
    present = [value for value in values if value is not None]
    return estimate(present) if present else None


def estimate(values: Sequence[float]) -> Estimate:
    """Return mean and interval of at least one value."""
    mean, n = fmean(values), len(values)
    if n == 1:
        return Estimate(mean, None, None, 1)
    margin = t_quantile(n - 1) * stdev(values) / sqrt(n)
    return Estimate(mean, mean - margin, mean + margin, n)


@cache
def t_quantile(degrees: int) -> float:
    """Return the t that a Student variable stays within, either side, with 95 % probability."""
    low, high = 0.0, pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        if _probability(middle, degrees) < CONFIDENCE:
            low = middle
        else:
            high = middle
    return sqrt(degrees) * tan(low)


def _probability(theta: float, degrees: int) -> float:
    """P(|T| < sqrt(degrees) tan(theta)): Abramowitz and Stegun 26.7.3 (odd), 26.7.4 (even)."""
    odd = degrees % 2
    term = cos(theta) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cos(theta) ** 2 * (k - 1) / k
        total += term
    return 2 / pi * (theta + sin(theta) * total) if odd else sin(theta) * total
