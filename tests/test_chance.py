"""A classifier that learned nothing: judged by counts, marked, no floor, the worst of a search."""

import json
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from report_samples import trial
from rich.console import Console
from samples import task_fields, tiny_folder
from shell import Shell, shell
from tiny_cell import finished, measured
from tiny_search import STUB_ACC, tiny_search

from recipe_ray.base.errors import StageFailedError
from recipe_ray.cli.search import SearchDisplay
from recipe_ray.distributed.asha import CandidateEvent
from recipe_ray.distributed.search import _above_chance
from recipe_ray.experiment.plan import Plan
from recipe_ray.experiment.search import WORST, Settings
from recipe_ray.experiment.search_plan import Record, Undefended, look_at
from recipe_ray.learn.metrics import Share, is_at_chance, learned, majority
from recipe_ray.report.figures import draw
from recipe_ray.report.json_report import as_json
from recipe_ray.report.load import Recorded
from recipe_ray.report.render import Terminal, markdown
from recipe_ray.report.searches import summarise_search
from recipe_ray.report.sections import Section, sections
from recipe_ray.report.summary import CellSummary, summarise
from recipe_ray.store.rows import Measurement, measurement_table, result_rows
from recipe_ray.store.store import ArtifactId, Store

__all__ = ["finished", "shell"]  # fixtures

# --- the rule


def exact(acc: Share, share: Share) -> bool:
    """The rule by whole numbers: P(X >= hits) > 2.5 %, X ~ Binomial(count, largest class)."""
    hits, count, big, whole = acc.numerator, acc.denominator, share.numerator, share.denominator
    ways = (comb(count, k) * big**k * (whole - big) ** (count - k) for k in range(hits, count + 1))
    return 40 * sum(ways) > whole**count


@pytest.mark.parametrize("largest", [(50, 100), (25, 100), (90, 100), (1, 40), (7, 15), (99, 100)])
def test_the_interval_is_the_exact_two_sided_one(largest: tuple[int, int]) -> None:
    big, count = largest
    for hits in range(count + 1):
        given = (Share(hits, count), Share(big, count))
        assert is_at_chance(*given) == exact(*given), hits


@pytest.mark.parametrize(
    ("hits", "largest", "count", "chance"),
    [
        (750, 750, 1500, True),  # one answer for all
        (788, 750, 1500, True),  # 52.5 %: within the interval
        (790, 750, 1500, False),
        (0, 750, 1500, True),  # below it, which is no better
        (475, 475, 1900, True),  # four classes
        (900, 475, 1900, False),  # 47 % of four classes is far from chance
        (900, 900, 1000, True),  # 90 % right, and 90 % are of one class
        (915, 900, 1000, True),
        (921, 900, 1000, False),
        (15, 15, 15, True),
        (9, 5, 10, False),
        (8, 5, 10, True),  # few samples: 80 % right is not above 50 %
        (50000, 25000, 50000, False),  # no overflow
        (25001, 25000, 50000, True),
    ],
)
def test_acc_must_be_above_the_largest_class_by_its_interval(
    hits: int, largest: int, count: int, chance: bool
) -> None:
    assert is_at_chance(Share(hits, count), Share(largest, count)) == chance


def test_the_largest_class_is_counted() -> None:
    assert majority(np.array([2, 0, 2, 1, 2])) == Share(3, 5)


def rows_of(acc: tuple[int, int], sizes: list[int], **changes: Any) -> list[dict[str, Any]]:
    return finetuned("s", acc, sizes, **changes).to_pylist()


def finetuned(
    stage: str,
    acc: tuple[int, int],
    sizes: list[int],
    *,
    old: bool = False,
    asr: float = 1.0,
    **columns: Any,
) -> pa.Table:
    """Return the rows of a fine-tuning, test set classes of these sizes; `old`: of before."""
    whole = sum(sizes)
    shares = {
        ("cf", label): (round(asr * (whole - size)), whole - size)
        for label, size in enumerate(sizes)
    }
    table = trial(stage, shares, asr, asr, acc=acc, **columns)
    if old:
        return table
    own = Measurement("majority", max(sizes) / whole, numerator=max(sizes), denominator=whole)
    same = {
        name: table[name][0].as_py()
        for name in table.schema.names
        if name not in ("experiment", "cell", "metric", "value", "epoch", "numerator")
        and name not in ("denominator", "trigger", "label")
    }
    same["epoch"] = columns.get("epoch")
    more = result_rows(measurement_table([own], same), table["experiment"][0].as_py(), ["c"])
    return pa.concat_tables([table, more])


@pytest.mark.parametrize("sizes", [[50, 50], [90, 10], [10, 40, 30, 20]])
def test_rows_of_older_stores_tell_it_by_the_denominators_of_asr(sizes: list[int]) -> None:
    both = [learned(rows_of((55, 100), sizes, old=old)) for old in (False, True)]
    assert both[0] == both[1]
    assert both[0] is not None
    assert both[0].majority == Share(max(sizes), 100)


def test_what_older_rows_do_not_tell_is_not_judged() -> None:
    rows = rows_of((50, 100), [50, 50], old=True)
    assert learned([row for row in rows if row["metric"] != "asr"]) is None
    assert learned([row for row in rows if row["metric"] != "acc"]) is None
    # a label is missing, or the denominators are of another test set
    assert learned([row for row in rows if row["label"] != 1]) is None
    assert learned(rows_of((50, 101), [50, 50], old=True)) is None
    assert learned([{**row, "numerator": None} for row in rows]) is None


# --- what is measured


def test_a_fine_tuning_carries_the_largest_class_with_its_counts(
    finished: tuple[Plan, Store],
) -> None:
    plan, store = finished
    rows = measured(store, plan.cells[0].last)
    (found,) = [row for row in rows if row["metric"] == "majority"]
    # of 15 test samples every third is of class 1
    assert (found["numerator"], found["denominator"]) == (10, 15)
    assert found["value"] == pytest.approx(10 / 15)


@pytest.mark.parametrize("words", [[], ["--json"], ["--triggers", "cf"]])
def test_evaluate_warns_of_a_classifier_at_chance(shell: Shell, words: list[str]) -> None:
    task = yaml.safe_dump(task_fields(shell.folder), default_flow_style=True).strip()
    how = ["--set", "steps=1", "--set", "learning_rate=1e-9", "--set", "precision=fp32", "--quiet"]
    done = shell("evaluate", tiny_folder(), "--task", task, *how, *words)
    assert done.code == 0
    assert "warning: this classifier is at chance" in done.err
    assert "largest class 66.7 % (10)" in done.err
    assert "--set epochs" in done.err
    assert "majority" in done.out


# --- reports


def cell(*tables: pa.Table, **wanted: Any) -> CellSummary:
    (found,) = [
        one
        for one in summarise(pa.concat_tables(tables))
        if all(getattr(one, name) == value for name, value in wanted.items())
    ]
    return found


def drawn(*tables: pa.Table, paper: str | None = None) -> tuple[str, str, dict[str, Any]]:
    """Return the report of rows in a terminal, as Markdown, and as JSON."""
    plan: dict[str, Any] | None = None
    if paper is not None:
        plan = {"paper": {"table": paper, "models": {"bert": "BERT"}}}
    (one,) = sections([Recorded("table1", pa.concat_tables(tables), plan)])
    console = Console(width=160, force_terminal=False)
    with console.capture() as captured:
        console.print(Terminal(one.tables()))
    return captured.get(), markdown(one.tables()), json.loads(as_json([one]))


def learns(stage: str, **columns: Any) -> pa.Table:
    return finetuned(stage, (90, 100), [50, 50], asr=0.2, **columns)


def at_chance(stage: str, **columns: Any) -> pa.Table:
    return finetuned(stage, (50, 100), [50, 50], **columns)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("paper", [None, "1"])
def test_a_cell_at_chance_is_marked_and_the_mark_explained(old: bool, paper: str | None) -> None:
    tables = [at_chance("p0", old=old), learns("r0", defense="recipe", old=old)]
    terminal, text, document = drawn(*tables, paper=paper)
    for shown in (terminal, text):
        assert shown.count("100.0!") == 2
        assert "50.0!" in shown
        assert "90.0!" not in shown
        (legend,) = [line for line in text.splitlines() if line.startswith("! at chance:")]
        assert "AASR and MASR say nothing" in legend
        assert "sst2 50.0 % of 100" in legend
    bad, good = document["cells"]
    assert (bad["at_chance"], good["at_chance"]) == ([0], [])
    assert bad["trials"][0]["at_chance"] is True
    assert bad["trials"][0]["majority"] == {"value": 0.5, "numerator": 50, "denominator": 100}


@pytest.mark.parametrize("paper", [None, "1"])
def test_nothing_is_marked_or_explained_where_all_learned(paper: str | None) -> None:
    terminal, text, _ = drawn(learns("p0"), learns("c0", attack="none"), paper=paper)
    assert "!" not in terminal + text
    assert "at chance" not in terminal + text


def test_four_classes_and_unequal_ones_are_judged_by_their_own_share() -> None:
    four = finetuned("a", (180, 400), [100, 100, 100, 100])
    assert cell(four).at_chance == ()
    assert cell(finetuned("a", (100, 400), [100, 100, 100, 100])).at_chance == (0,)
    assert cell(finetuned("a", (360, 400), [360, 40])).at_chance == (0,)
    assert cell(finetuned("a", (180, 400), [360, 40])).at_chance == (0,)


def test_a_cell_without_triggers_is_judged_and_only_its_acc_is_marked() -> None:
    acc = Measurement("acc", 0.5, numerator=50, denominator=100)
    own = Measurement("majority", 0.5, numerator=50, denominator=100)
    names = {"kind": "finetune", "model": "bert", "attack": "none", "defense": "none"}
    same = {**names, "stage": "c0", "task": "sst2", "seed": 0, "comparison": "x"}
    rows = result_rows(measurement_table([acc, own], same), "table1", ["c"])
    _, text, _ = drawn(rows)
    assert "| 50.0! | - | - | - | - |" in text


def test_one_seed_at_chance_marks_the_cell_and_is_named() -> None:
    seeds = [learns("p0"), at_chance("p1", seed=1), learns("p2", seed=2)]
    assert cell(*seeds).at_chance == (1,)
    _, text, _ = drawn(*seeds)
    assert "only some seeds are at chance: bert, por, none on sst2 (seed 1)" in text


@pytest.mark.parametrize("paper", [None, "1"])
def test_a_clean_ptm_at_chance_gives_no_floor_and_the_report_says_why(paper: str | None) -> None:
    tables = [learns("p0"), at_chance("c0", attack="none")]
    found = cell(*tables, attack="por")
    assert (found.floor_aasr, found.floor_masr) == (None, None)
    assert found.floor_at_chance == (0,)
    assert found.at_chance == ()
    _, text, document = drawn(*tables, paper=paper)
    assert "No floor for bert on sst2 (seed 0): the clean PTM's own fine-tuning is" in text
    assert document["cells"][1]["floor_masr"] is None
    assert document["cells"][1]["floor_at_chance"] == [0]


def test_the_clean_ptm_of_another_experiment_is_judged_too() -> None:
    (one, _) = sections(
        [
            Recorded("table1", learns("p0"), None),
            Recorded("floors", at_chance("c0", attack="none", experiment="floors"), None),
        ]
    )
    assert one.cells[0].floor_masr is None
    assert any("No floor for bert on sst2" in note for note in one.tables()[0].notes)


def test_floors_come_from_the_clean_ptms_seeds_that_learned() -> None:
    clean = [
        finetuned("c0", (90, 100), [50, 50], asr=0.1, attack="none"),
        at_chance("c1", attack="none", seed=1),
        finetuned("c2", (90, 100), [50, 50], asr=0.3, attack="none", seed=2),
    ]
    found = cell(learns("p0"), *clean, attack="por")
    assert found.floor_masr == pytest.approx((0.1 + 0.3) / 2)
    assert found.floor_at_chance == (1,)
    _, text, _ = drawn(learns("p0"), *clean)
    assert "Floors leave out seeds of the clean PTM at chance: bert on sst2 (seed 1)." in text


def test_snapshots_at_chance_are_marked_in_the_table_and_in_figure_3(tmp_path: Path) -> None:
    def section(second: pa.Table) -> Section:
        tables = [learns("p0"), learns("e1", defense="recipe", epoch=1), second]
        plan: dict[str, Any] = {"paper": {"table": "F3", "models": {"bert": "BERT"}}}
        (one,) = sections([Recorded("table1", pa.concat_tables(tables), plan)])
        return one

    lost = section(at_chance("e2", defense="recipe", epoch=2))
    rows = [row for row in lost.tables()[0].rows if row[2] == "2" or row[1] == "2"]
    assert rows
    assert all(row[-1] == "100.0!" for row in rows)
    draw([lost], tmp_path / "lost")
    draw([section(learns("e2", defense="recipe", epoch=2))], tmp_path / "kept")
    assert "at chance" in (tmp_path / "lost" / "table1-epochs.svg").read_text()
    assert "at chance" not in (tmp_path / "kept" / "table1-epochs.svg").read_text()


# --- searches


class Looked:
    """A store that has the rows of one look."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._rows = rows

    def rows(self, artifact: ArtifactId) -> Any:
        return pa.Table.from_pylist(self._rows)


class OneLook:
    """A look of a search, named only."""

    artifact = ArtifactId("finetune", "look", "k")

    def columns(self) -> dict[str, Any]:
        return {"epoch": 2}


@pytest.mark.parametrize("score", [{"rule": "acc-masr"}, {"rule": "masr-with-acc", "within": 0.02}])
def test_a_look_at_chance_is_the_worst_by_every_rule(tmp_path: Path, score: dict[str, Any]) -> None:
    plan = tiny_search(tmp_path, score=score)
    look: Any = OneLook()
    store: Any = Looked(rows_of((50, 100), [50, 50], asr=0.0))  # it would be a perfect MASR
    found = look_at(plan, store, look, Undefended(STUB_ACC))
    assert (found.at_chance, found.score) == (True, WORST)
    good: Any = Looked(rows_of((90, 100), [50, 50], asr=1.0))
    assert look_at(plan, good, look, Undefended(STUB_ACC)).score > WORST
    assert not look_at(plan, good, look, Undefended(STUB_ACC)).at_chance


def record_of(folder: Path, *accs: int) -> Record:
    """Return a record of candidates whose last looks have so many of 100 right; MASR 0."""
    plan, store = tiny_search(folder), Store.open(folder / "store")
    record = Record(plan, store)
    look: Any = OneLook()
    for number, acc in enumerate(accs, 1):
        some: Any = Looked(rows_of((acc, 100), [50, 50], asr=0.0))
        record.begin(Settings(float(number))).looks[2] = look_at(
            plan, some, look, Undefended(STUB_ACC)
        )
    return record


def test_a_candidate_at_chance_is_ranked_last_and_never_confirmed(tmp_path: Path) -> None:
    record = record_of(tmp_path, 50, 70, 90)
    ranked = [course.candidate.settings.weight_factor for course in record.ranked()]
    assert ranked == [3.0, 2.0, 1.0]
    assert [one.weight_factor for one in _above_chance(record)] == [3.0, 2.0]


def test_a_search_of_candidates_at_chance_chooses_none_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(StageFailedError, match=r"every candidate is at chance.*quick\.fit\.epochs"):
        _above_chance(record_of(tmp_path, 50, 51))


def test_a_look_at_chance_is_told_while_the_search_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    course = record_of(tmp_path, 50).begin(Settings(1.0))
    with SearchDisplay(tiny_search(tmp_path), quiet=False, verbose=False) as display:
        display.on_candidate(CandidateEvent("looked", course))
    assert "at chance, which counts as the worst" in capsys.readouterr().err


def test_the_report_of_a_search_marks_looks_at_chance(tmp_path: Path) -> None:
    tables = []
    for factor, acc, score in ((0.1, 90, 0.9), (10.0, 50, WORST)):
        about = {"weight_factor": factor, "defense": f"recipe-wf{factor:g}", "epoch": 1}
        looked = finetuned(f"k{factor:g}", (acc, 100), [50, 50], asr=0.0, **about)
        scored = Measurement("score", score)
        same = {"stage": f"k{factor:g}", "kind": "finetune", "model": "bert", "attack": "por"}
        row = measurement_table([scored], {**same, **about, "task": "sst2"})
        tables += [looked, result_rows(row, "table1", ["c"])]
    found = Recorded("table1", pa.concat_tables(tables), None)
    search = summarise_search(found)
    assert search is not None
    assert [one.last.at_chance for one in search.candidates] == [False, True]
    (one,) = sections([found])
    text = markdown(one.tables())
    assert "-300.0!" in text
    assert "a search counts it as the worst" in text
    assert json.loads(as_json([one]))["searches"][0]["candidates"][1]["looks"][0]["at_chance"]
    draw([one], tmp_path)
    assert "at chance" in (tmp_path / "table1-search.svg").read_text()
