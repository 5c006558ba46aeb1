"""The numbers that the paper reports, as data: percentages and counts as printed.

Source: Zhu et al., TACL 2023, Tables 1-12, and the tables of its appendix file (A1-A5).
"""

import csv
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Published:
    """One printed value: a percentage, or a count where `metric` is poisoned_only_neurons."""

    table: str
    model: str
    attack: str
    defense: str
    aux_data: str
    aux_size: int
    variant: str  # "" where the table has none
    dataset: str
    metric: str
    value: float


def published() -> list[Published]:
    """Return all values, in the order of the tables."""
    text = (files("recipe_ray.report") / "published_results.csv").read_text(encoding="utf-8")
    return [
        Published(
            table=row["table"],
            model=row["model"],
            attack=row["attack"],
            defense=row["defense"],
            aux_data=row["aux_data"],
            aux_size=int(row["aux_size"]),
            variant=row["variant"],
            dataset=row["dataset"],
            metric=row["metric"],
            value=float(row["value"]),
        )
        for row in csv.DictReader(text.splitlines())
    ]
