"""Results read back from a store, from a kept folder and from Parquet files; figures of them."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from report_samples import clean, por, probe
from shell import Shell, shell

from recipe_ray.report import load
from recipe_ray.store.rows import encode_rows, result_schema
from recipe_ray.store.store import Store

__all__ = ["shell"]  # a fixture

EPOCHS = (1, 2, 8)
PLANS = {"table1": "F3", "probed": "F2", "floors": None}


def rows() -> dict[str, pa.Table]:
    """Return the rows of three experiments by stage."""
    found = {f"e{n}": por(f"e{n}", defense="recipe", epoch=n, masr=0.8 / n) for n in EPOCHS}
    found |= {"p0": por("p0"), "c0": clean("c0", experiment="floors")}
    found |= {"b0": probe("b0", 0.4, 200), "q0": probe("q0", 0.7, 90, defense="recipe")}
    return found | {"k0": probe("k0", 0.9, 20, attack="none")}


def filled(folder: Path) -> Path:
    """Return a store with the rows, and with one stage that no plan has any more."""
    store = Store.open(folder)
    stages: dict[str, list[str]] = {}
    for stage, table in rows().items():
        experiment = table["experiment"][0].as_py()
        store.write_results(experiment, stage, table)
        stages.setdefault(experiment, []).append(stage)
    store.write_results("table1", "old", por("old", acc=(1, 10)))
    for experiment, table_name in PLANS.items():
        paper = {"table": table_name, "models": {"bert": "BERT"}} if table_name else None
        plan: dict[str, Any] = {"experiment": experiment, "paper": paper, "cells": []}
        store.write_plan(experiment, {**plan, "stages": dict.fromkeys(stages[experiment])})
    return folder


def test_a_kept_folder_reports_what_its_store_did(shell: Shell) -> None:
    store = filled(shell.folder / "store")
    whole = shell("report", store, "--export", "kept", "--json")
    assert "wrote kept/table1/rows.parquet" in whole.err
    assert shell("report", "kept", "--json").out == whole.out
    assert len(json.loads(whole.out)["cells"]) == 5
    assert {file.name for file in Path("kept/probed").iterdir()} == {"plan.json", "rows.parquet"}
    one = json.loads(shell("report", "kept/table1", "--json").out)
    # its floor lies in another experiment
    assert {cell["floor_masr"] for cell in one["cells"]} == {None}


def test_rows_of_stages_that_the_plan_left_out_are_not_kept(shell: Shell) -> None:
    shell("report", filled(shell.folder / "store"), "--export", "kept")
    kept = pq.read_table("kept/table1/rows.parquet")
    assert set(kept["stage"].to_pylist()) == {"e1", "e2", "e8", "p0"}


def test_one_file_of_rows_is_reported_with_every_experiment_in_it(shell: Shell) -> None:
    Path("all.parquet").write_bytes(encode_rows(pa.concat_tables(rows().values())))
    document = json.loads(shell("report", "all.parquet", "--json").out)
    assert {cell["experiment"] for cell in document["cells"]} == {"table1", "floors"}
    (start,) = [cell for cell in document["cells"] if cell["attack"] == "por" and not cell["epoch"]]
    assert start["floor_masr"] == pytest.approx(0.2)


def test_a_file_that_holds_no_result_rows_is_named(shell: Shell) -> None:
    Path("notes.parquet").write_text("no Parquet")
    assert "notes.parquet: damaged" in shell.fails("report", "notes.parquet")
    fewer = rows()["p0"].drop_columns(["experiment"])
    Path("stage.parquet").write_bytes(encode_rows(fewer))
    assert "stage.parquet: not result rows" in shell.fails("report", "stage.parquet")
    assert result_schema().names[0] == "experiment"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["table1/rows.parquet", "table1/plan.json"])
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("pipe", "it is a named pipe; expected a regular file"),
        ("folder", "it is a folder"),
        ("device", "a link out of its folder"),
        ("outside", "a link out of its folder"),
        ("broken", "does not exist"),
        ("loop", "cannot be read"),
    ],
)
def test_a_file_of_a_kept_folder_that_is_no_file_in_it_is_refused(
    shell: Shell, name: str, kind: str, said: str
) -> None:
    shell("report", filled(shell.folder / "store"), "--export", "kept")
    file = Path("kept") / name
    other = file.rename(shell.folder / f"other-{file.name}")
    targets = {"device": "/dev/zero", "outside": other, "broken": "nowhere", "loop": file.name}
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(targets[kind])
    refused = shell.fails("report", "kept")
    assert name in refused
    assert said in refused


def test_a_kept_file_without_end_is_refused_before_it_is_read(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("report", filled(shell.folder / "store"), "--export", "kept")
    monkeypatch.setattr(load, "_LARGEST", 10_000)
    with Path("kept/floors/rows.parquet").open("ab") as file:
        file.truncate(2**34)  # it takes no place on the disk
    said = shell.fails("report", "kept")
    assert "kept/floors/rows.parquet: it has 17,179,869,184 bytes" in said


@pytest.mark.timeout(60)
def test_a_pipe_and_an_experiment_that_lies_elsewhere_are_refused(shell: Shell) -> None:
    os.mkfifo("all.parquet")
    assert "it is a named pipe" in shell.fails("report", "all.parquet")
    shell("report", filled(shell.folder / "store"), "--export", "kept")
    Path("kept/table1").rename("table1")
    Path("kept/table1").symlink_to(Path("table1").absolute())
    assert "outside of kept" in shell.fails("report", "kept")
    Path("linked.parquet").symlink_to(Path("table1/rows.parquet"))  # the user's own link
    assert shell("report", "linked.parquet", "--json").code == 0


# --- figures


def test_figures_are_drawn_and_the_same_results_give_the_same_bytes(shell: Shell) -> None:
    store = filled(shell.folder / "store")
    for folder in ("one", "two"):
        shell("report", store, "--figures", folder)
    of_cells = ("attack-success", "accuracy", "trade-off", "epochs", "triggers-by-label")
    figures = {"probed-overlap", *(f"table1-{name}" for name in of_cells)}
    names = {f"{figure}.{suffix}" for figure in figures for suffix in ("svg", "png", "pdf")}
    assert {file.name for file in Path("one").iterdir()} == names
    for name in names:  # the order of a PDF's objects is the library's own and differs
        if not name.endswith(".pdf"):
            assert Path("one", name).read_bytes() == Path("two", name).read_bytes()
    assert Path("one/probed-overlap.png").read_bytes()[:4] == b"\x89PNG"
    assert Path("one/probed-overlap.pdf").read_bytes()[:4] == b"%PDF"
    assert "<svg" in Path("one/table1-epochs.svg").read_text()


def test_other_results_give_another_figure(shell: Shell) -> None:
    store = filled(shell.folder / "store")
    shell("report", store, "--figures", "one")
    Store.open(store).write_results("probed", "q0", probe("q0", 0.71, 90, defense="recipe"))
    shell("report", store, "--figures", "two")
    changed, same = "probed-overlap.svg", "table1-epochs.svg"
    assert Path("one", changed).read_text() != Path("two", changed).read_text()
    assert Path("one", same).read_text() == Path("two", same).read_text()


def test_a_figure_without_its_library_names_the_extra(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(shell.folder / "store")
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    for option in ("--figures", "--html"):
        assert "pip install 'recipe-ray[figures]'" in shell.fails("report", store, option, "f")
        assert not Path("f").exists()


def test_an_own_grid_needs_no_table_of_the_paper_to_be_drawn(shell: Shell) -> None:
    rows = pa.concat_tables([por("p0"), por("p1", defense="recipe", masr=0.2, seed=1)])
    Path("mine.parquet").write_bytes(encode_rows(rows))
    shell("report", "mine.parquet", "--figures", "f")
    assert Path("f/table1-attack-success.svg").is_file()


def test_what_has_nothing_to_draw_is_said_with_its_name(shell: Shell) -> None:
    store = filled(shell.folder / "store")
    said = shell.fails("report", store, "--experiment", "floors", "--figures", "f")
    assert "nothing was measured yet that can be drawn (experiments here: floors)" in said


def test_only_some_rows_are_shown_with_the_clean_ptms_as_their_floor(shell: Shell) -> None:
    store = filled(shell.folder / "store")
    every = json.loads(shell("report", store, "--json").out)["cells"]
    shown = json.loads(shell("report", store, "--only", "defense=recipe", "--json").out)["cells"]
    assert {(one["attack"], one["defense"]) for one in every} == {
        *(("none", "none"), ("por", "none"), ("por", "recipe"))
    }
    assert {one["defense"] for one in shown if one["attack"] == "por"} == {"recipe"}
    assert [one for one in every if one["defense"] == "recipe" or one["attack"] == "none"] == shown
    both = shell("report", store, "--only", "defense=recipe", "--only", "epoch=1,2", "--json")
    assert [one["epoch"] for one in json.loads(both.out)["cells"] if one["epoch"]] == [1, 2]


@pytest.mark.parametrize(
    ("only", "said"),
    [
        ("defence=recipe", "unknown column 'defence' (did you mean 'defense'?)"),
        ("defense=reciep", "--only defense: unknown value 'reciep' (did you mean 'recipe'?)"),
        ("defense", "--only defense: write COLUMN=VALUE,..., e.g. defense=none,recipe"),
        ("defense=", "write COLUMN=VALUE"),
        ("value=0.5", "unknown column 'value'"),
    ],
)
def test_rows_that_there_are_none_of_are_named(shell: Shell, only: str, said: str) -> None:
    assert said in shell.fails("report", filled(shell.folder / "store"), "--only", only)
