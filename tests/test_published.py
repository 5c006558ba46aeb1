"""The paper's numbers, and that what our experiments measure finds them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from recipe_ray.base.errors import UserError
from recipe_ray.data.sources import Locations
from recipe_ray.experiment.files import load_experiment
from recipe_ray.experiment.plan import make_plan
from recipe_ray.experiment.spec import Paper
from recipe_ray.report.published import Published, PublishedTable, canonical, published

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
TEXT_TABLES = [str(number) for number in range(1, 12)]


class Measured(NamedTuple):
    """What a cell says of itself."""

    model: str = "minilm-3"
    attack: str = "badpre"
    defense: str = "recipe"
    aux: str | None = "bookcorpus"
    aux_size: int | None = 2000
    weight_factor: float | None = 1.0
    task: str = "sst2"


def of(table: str, **models: str) -> PublishedTable:
    return PublishedTable(Paper(table=table, models=models or {"minilm-3": "BERT"}))


def planned(scale: str, table: str) -> tuple[PublishedTable, Iterator[Measured]]:
    """Return a table and what the plan of its experiment will measure."""
    nowhere = Locations(None, Path("/nowhere"))
    experiment = load_experiment(EXPERIMENTS / scale / f"table{table}.yaml")
    plan = make_plan(experiment, nowhere)
    assert plan.paper is not None
    columns: list[dict[str, Any]] = [cell.last.columns() for cell in plan.cells]
    cells = (Measured(*(one.get(name) for name in Measured._fields)) for one in columns)
    return PublishedTable(plan.paper), cells


def test_all_published_values_are_there_and_plausible() -> None:
    values = published()
    assert len(values) == 721
    assert {value.table for value in values} == {
        *(str(number) for number in range(1, 13)),
        *("A1", "A2", "A3", "A4", "A5"),
    }
    counts = [value for value in values if value.metric == "poisoned_only_neurons"]
    assert {value.table for value in counts} == {"10"}
    assert all(value.value == int(value.value) >= 0 for value in counts)
    shares = [value for value in values if value.metric in ("ACC", "AASR", "MASR")]
    assert len(shares) + len(counts) == 721
    assert all(0 <= value.value <= 100 for value in shares)
    assert len(set(values)) == 721


def test_a_published_value_is_the_one_in_print() -> None:
    # Table 1, first line: BERT, POR, w/o Defense, SST-2
    first = published()[0]
    assert (first.model, first.attack, first.defense) == ("BERT", "POR", "w/o Defense")
    assert (first.dataset, first.metric, first.value) == ("SST-2", "ACC", 91.87)
    assert (first.aux_data, first.aux_size, first.variant) == ("BookCorpus", 20000, "")


@pytest.mark.parametrize("scale", ["mini", "paper"])
@pytest.mark.parametrize("table", TEXT_TABLES)
def test_every_value_of_a_text_table_is_found_by_a_cell_of_its_experiment(
    scale: str, table: str
) -> None:
    paper, cells = planned(scale, table)
    found = [value for cell in cells for value in paper.find(cell).values()]
    missing = set(paper.values) - set(found)
    assert not missing, f"{scale}/table{table}.yaml: {len(missing)}, such as {missing.pop()}"


@pytest.mark.parametrize("table", sorted({value.table for value in published()}))
def test_every_value_is_found_under_the_names_that_we_would_give(table: str) -> None:
    values = [value for value in published() if value.table == table]
    for value in values:
        found = of(table, ours=value.model).find(ours(value))
        assert found[value.metric] == value


def ours(value: Published) -> Measured:
    """Return a cell that is called as a plugin or title of ours would be."""
    titles = {"w/o Defense": "none"}
    return Measured(
        model="ours",
        attack=value.attack.lower().replace(" ", "-"),
        defense=titles.get(value.defense, value.defense.lower().replace(" ", "-")),
        aux=value.aux_data.lower(),
        aux_size=value.aux_size,
        weight_factor=value.weight_factor,
        task=value.dataset.lower().replace(" ", "_").replace("sst-2", "sst2"),
    )


def test_an_auxiliary_size_counts_only_where_it_is_the_question() -> None:
    assert of("4").find(Measured(aux_size=50))["MASR"].value == 14.86
    assert of("4").find(Measured(aux_size=2000)) == {}
    assert of("1").find(Measured(aux_size=2000))["MASR"].value == 12.72
    assert of("1").find(Measured(defense="none", aux=None, aux_size=None))["ACC"].value == 91.54


def test_a_weight_factor_counts_only_where_it_is_the_question() -> None:
    assert of("9").find(Measured(weight_factor=0.5, defense="recipe-half"))["AASR"].value == 15.27
    assert of("9").find(Measured(weight_factor=0.7)) == {}
    assert of("1").find(Measured(weight_factor=0.7))["AASR"].value == 11.95


def test_a_corpus_that_the_paper_used_elsewhere_is_not_the_tables_own() -> None:
    assert of("5").find(Measured(aux="webtext"))["ACC"].dataset == "SST-2"
    assert of("5").find(Measured(aux="bookcorpus")) == {}
    assert of("5").find(Measured(aux="editorials"))


@pytest.mark.parametrize(
    "other",
    [{"model": "minilm-6"}, {"attack": "por-x"}, {"defense": "recipe-half"}, {"task": "sst2-dev"}],
)
def test_what_the_paper_does_not_have_finds_nothing(other: dict[str, str]) -> None:
    assert of("1").find(Measured(**other)) == {}


def test_rows_and_tasks_come_in_the_papers_order() -> None:
    factors = (0.1, 1.0, 1.5, 0.5, 1.2)
    cells = sorted((Measured(weight_factor=f) for f in factors), key=of("9").row_rank)
    assert [cell.weight_factor for cell in cells] == [1.5, 1.2, 1.0, 0.5, 0.1]
    names = ("recipe", "none", "my-own", "fp-ga", "fp")
    cells = sorted((Measured(defense=name) for name in names), key=of("1").row_rank)
    assert [cell.defense for cell in cells] == ["none", "fp", "fp-ga", "recipe", "my-own"]
    tasks = sorted(["ag_news", "hsol", "mine", "sst2"], key=of("F2").task_rank)
    assert [of("F2").dataset(task) for task in tasks] == ["SST-2", "HSOL", "AG News", "mine"]


def test_a_figure_has_no_values() -> None:
    assert of("F3").values == ()
    assert of("F3").find(Measured()) == {}


def test_a_table_or_model_that_the_paper_lacks_is_named() -> None:
    with pytest.raises(UserError, match=r"table or figure '13'.*allowed: 1, 10"):
        of("13")
    with pytest.raises(UserError, match=r"paper.models.mine: .*'BERTA'.*did you mean 'BERT'"):
        of("1", mine="BERTA")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("none", "w/o Defense"),
        ("por-phrases", "POR phrase"),
        ("only-regularization", "Only Regularization"),
        ("ag_news", "AG News"),
    ],
)
def test_names_agree_whatever_case_and_signs_they_are_written_with(ours: str, theirs: str) -> None:
    assert canonical(ours) == canonical(theirs)
