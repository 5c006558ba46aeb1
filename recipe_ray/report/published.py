"""The numbers that the paper reports, as data, and how our results find them.

Source: Zhu et al., TACL 2023, Tables 1-12, and the tables of its appendix file (A1-A5): percentages
and counts as printed. The paper prints no values for its figures (F2, F3), so those have none.
"""

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Protocol

from recipe_ray.base.errors import UserError, unknown
from recipe_ray.experiment.spec import Paper

FIGURES = ("F2", "F3")
COUNT = "poisoned_only_neurons"
# neurons of the paper's PTMs: 12 intermediate layers of 3072, the total behind Table 10's counts
NUM_NEURONS = {"BERT": 12 * 3072}
_WEIGHT_FACTOR = "weight_factor="
# our names that differ from the paper's in more than case, spaces and signs
_SAME = {"wodefense": "none", "porphrases": "porphrase"}


@dataclass(frozen=True)
class Published:
    """One printed value: a percentage, or a count if `metric` is poisoned_only_neurons."""

    table: str
    model: str
    attack: str
    defense: str
    aux_data: str
    aux_size: int
    variant: str  # "" if the table has none
    dataset: str
    metric: str
    value: float

    @property
    def weight_factor(self) -> float | None:
        """The weight factor, if the table varies it."""
        if not self.variant.startswith(_WEIGHT_FACTOR):
            return None
        return float(self.variant.removeprefix(_WEIGHT_FACTOR))


class Named(Protocol):
    """What a measured cell says of itself, under our names."""

    @property
    def model(self) -> str: ...
    @property
    def attack(self) -> str: ...
    @property
    def defense(self) -> str: ...
    @property
    def aux(self) -> str | None: ...
    @property
    def aux_size(self) -> int | None: ...
    @property
    def weight_factor(self) -> float | None: ...
    @property
    def task(self) -> str: ...


@cache
def published() -> tuple[Published, ...]:
    """Return all values, in the order of the tables."""
    text = (files("recipe_ray.report") / "published_results.csv").read_text(encoding="utf-8")
    return tuple(
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
    )


@cache
def canonical(name: str) -> str:
    """Return a name as it is compared: lower case, letters and digits only."""
    plain = "".join(char for char in name.casefold() if char.isalnum())
    return _SAME.get(plain, plain)


class PublishedTable:
    """One of the paper's tables or figures, looked up by our names; a figure has no values.

    Raises UserError for a table or a model that the paper does not have.
    """

    def __init__(self, paper: Paper) -> None:
        names = dict.fromkeys(value.table for value in published())
        if paper.table not in (*names, *FIGURES):
            raise UserError(
                "paper.table: " + unknown("table or figure", paper.table, (*names, *FIGURES))
            )
        self.name = paper.table
        self.values = tuple(value for value in published() if value.table == paper.table)
        self.models = paper.models
        # a figure has no values, but its names and their order are those of the tables
        self._naming = self.values or published()
        found = dict.fromkeys(value.model for value in self.values)
        for ours, theirs in paper.models.items() if found else ():
            if theirs not in found:
                raise UserError(f"paper.models.{ours}: {unknown('model', theirs, found)}")
        self._varies_size = _varies_size(self.values)

    @property
    def title(self) -> str:
        """What the paper calls it."""
        if self.name in FIGURES:
            return f"Figure {self.name.removeprefix('F')}"
        return f"Table {self.name}"

    @property
    def place(self) -> tuple[int, str]:
        """What sorts tables as the paper does, its figures after its tables."""
        names = [*dict.fromkeys(value.table for value in published()), *FIGURES]
        return names.index(self.name), self.name

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it prints, in its order."""
        return tuple(dict.fromkeys(value.metric for value in self.values))

    def find(self, cell: Named) -> dict[str, Published]:
        """Return what the paper reports for a cell, by metric; empty if it has nothing."""
        return {value.metric: value for value in self.values if self._describes(value, cell)}

    def dataset(self, task: str) -> str:
        """Return the paper's name of a task, or ours if it has none."""
        names = (value.dataset for value in self._naming)
        return next((name for name in names if canonical(name) == canonical(task)), task)

    def task_rank(self, task: str) -> tuple[int, str]:
        """Return what sorts tasks as the paper does."""
        return _rank(task, (value.dataset for value in self._naming)), task

    def attack_rank(self, attack: str) -> tuple[int, str]:
        """Return what sorts attacks as the paper does."""
        return _rank(attack, (value.attack for value in self._naming)), attack

    def row_rank(self, cell: Named) -> tuple[int | str | float, ...]:
        """Return what sorts rows as the paper does; "none" comes first."""
        model = self.models.get(cell.model, cell.model)
        return (
            _rank(model, (value.model for value in self.values)),
            cell.model,
            *self.attack_rank(cell.attack),
            _rank(self._defense(cell), (value.defense for value in self._naming)),
            self._setting_rank(cell),
            cell.defense,
            cell.aux_size or 0,
            cell.weight_factor or 0.0,
        )

    def _describes(self, value: Published, cell: Named) -> bool:
        return (
            self.models.get(cell.model) == value.model
            and canonical(cell.attack) == canonical(value.attack)
            and self._defense(cell) == canonical(value.defense)
            and canonical(cell.task) == canonical(value.dataset)
            and _corpus_agrees(value, cell.aux)
            and self._setting_agrees(value, cell)
        )

    def _defense(self, cell: Named) -> str:
        # if a setting tells the rows of one defense apart, titles such as recipe-half do too
        label = canonical(cell.defense)
        defenses = {canonical(value.defense) for value in self.values}
        told_apart = self._varies_size or any(value.weight_factor for value in self.values)
        if told_apart and len(defenses) == 1 and label.startswith(only := defenses.pop()):
            return only
        return label

    def _setting_agrees(self, value: Published, cell: Named) -> bool:
        # sizes at a smaller scale are other sizes: they count only if they are the question
        if self._varies_size and value.aux_size != cell.aux_size:
            return False
        return value.weight_factor in (None, cell.weight_factor)

    def _setting_rank(self, cell: Named) -> int:
        settings = dict.fromkeys((value.aux_size, value.weight_factor) for value in self.values)
        for rank, (size, factor) in enumerate(settings):
            if factor in (None, cell.weight_factor) and (
                not self._varies_size or size == cell.aux_size
            ):
                return rank
        return len(settings)


def _varies_size(values: Iterable[Published]) -> bool:
    sizes: dict[tuple[str, ...], set[int]] = {}
    for value in values:
        row = (value.model, value.attack, value.defense, value.aux_data, value.variant)
        sizes.setdefault((*row, value.dataset), set()).add(value.aux_size)
    return any(len(found) > 1 for found in sizes.values())


def _corpus_agrees(value: Published, aux: str | None) -> bool:
    # a corpus that the paper never used may replace its own; one that it used counts as itself
    if aux is None or canonical(aux) not in _corpora():
        return True
    return canonical(aux) == canonical(value.aux_data)


@cache
def _corpora() -> frozenset[str]:
    return frozenset(canonical(value.aux_data) for value in published())


def _rank(name: str, printed: Iterable[str]) -> int:
    names = list(dict.fromkeys(canonical(other) for other in printed))
    wanted = canonical(name)
    if wanted in names:
        return names.index(wanted)
    return -1 if wanted == "none" else len(names)
