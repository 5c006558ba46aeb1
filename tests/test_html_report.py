"""The report as one HTML page: what is on it, and what rows of a stranger can do to it."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from page_samples import SCRIPT, TIME, Page, page_of, study
from report_samples import POR, Asr, clean, por, probe
from shell import Shell, shell

from recipe_ray.report import html
from recipe_ray.report.cell_figures import pareto
from recipe_ray.report.charts import COLOURS, Figure, short
from recipe_ray.report.figures import figures
from recipe_ray.report.load import Recorded
from recipe_ray.report.overview import core_hours, overviews, worker_hours
from recipe_ray.report.sections import sections
from recipe_ray.store.rows import encode_rows
from recipe_ray.store.store import ArtifactId, Store

__all__ = ["shell"]  # a fixture


def test_the_page_has_every_table_and_figure_with_words_for_who_cannot_see_them() -> None:
    text = page_of(*study(), probe("b0", 0.4, 200), probe("k0", 0.9, 20, attack="none"))
    page = Page(text)
    assert len(page.all("table")) == len(page.all("caption")) == 3  # costs, cells, probes
    assert {one.get("scope") for one in page.all("th")} >= {"col", "row", "colgroup"}
    charts = page.all("svg")
    assert len(charts) == len(page.all("figure")) == 6
    assert all(one["role"] == "img" and one["aria-label"] for one in charts)
    assert all("n = " in note for note in re.findall(r"<figcaption>.*?</figcaption>", text))
    assert "Bars: 95 % t interval over seeds; n = 3 seeds." in text


def test_the_page_fetches_nothing_and_links_only_to_itself() -> None:
    page = Page(page_of(*study()))
    assert page.all("link") == page.all("iframe") == page.all("img") == []
    assert all(str(one["href"]).startswith("#") for one in page.all("a"))
    assert [one for one in page.all("script") if "src" in one] == []
    (policy,) = [str(m["content"]) for m in page.all("meta") if "http-equiv" in m]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(str(one["href"])[1:] in ids for one in page.all("a"))


def test_names_in_rows_are_text_whatever_they_hold() -> None:
    asr: Asr = {(SCRIPT + name, label): n for (name, label), n in POR.items()}
    names = dict.fromkeys(("experiment", "model", "attack", "defense", "task"), SCRIPT)
    rows = [por(f"s{n}", **{**names, "asr": asr, "masr": 0.3, **TIME}, seed=n) for n in (0, 1)]
    text = page_of(*rows, por("p", experiment=SCRIPT, model=SCRIPT, task=SCRIPT, **TIME))
    page = Page(text)
    assert len(page.all("script")) == 1
    assert page.all("img") == []
    assert any(SCRIPT in words for words in page.words)
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]


@pytest.mark.parametrize(
    "name", ["x" * 100_000, "\x1b[31m\x00\u202e", "a\nb", "<!--", "]]>", "日本"]
)
def test_long_and_odd_names_are_cut_and_made_visible(name: str) -> None:
    text = page_of(*study(model=name, task=name))
    assert len(text) < 300_000
    assert not re.search("[\x00-\x08\x1b\u202e]", text)
    assert len(Page(text).all("table")) == 2


def test_names_that_begin_alike_stay_two_names_in_a_chart() -> None:
    first, second = ("y" * 5000 + end for end in "ab")
    assert short(first) != short(second)
    assert len(short(first)) == 28
    assert short("plain") == "plain"


def test_a_page_without_end_is_refused_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html, "LARGEST", 50_000)
    with pytest.raises(html.UserError, match="choose one with --experiment"):
        page_of(*study())


def test_blocks_carry_the_clean_ptm_each_so_that_sorting_keeps_what_belongs_together() -> None:
    plan: dict[str, Any] = {
        **{"paper": {"table": "1", "models": {"bert": "BERT"}}, "cells": []},
        "stages": dict.fromkeys(f"{kind}{seed}" for kind in "cpr" for seed in range(3)),
    }
    text = page_of(*study(), plan=plan)
    blocks = re.findall(r"<tbody>.*?</tbody>", text)
    ours = [one for one in blocks if "· paper" in one]
    assert len(ours) == 2
    assert all(one.count("· clean PTM") == 1 for one in ours)


def test_shared_stages_cost_once_and_cores_are_never_guessed() -> None:
    rows = pa.concat_tables(study())
    found = [Recorded("table1", rows, None)]
    (about,) = overviews(found, None)
    assert worker_hours([*about.runs, *about.runs]) == 9.0  # 9 stages x 2 workers x 0.5 h
    assert core_hours(about.runs) is None
    assert about.failures is None
    assert "not to an export" in page_of(*study())


@pytest.mark.parametrize("versions", ["no JSON", "[" * 100_000, "[1]", "{}", '{"torch": [1]}'])
def test_odd_versions_and_times_of_a_stranger_break_nothing(versions: str) -> None:
    odd = [{"wall_s": 1e300}, {"wall_s": float("nan")}, {"time": datetime(1, 1, 1, tzinfo=UTC)}]
    rows = [por(f"o{n}", seed=n, **{**TIME, **one}) for n, one in enumerate(odd)]
    page_of(*rows, por("p", seed=9, **TIME, versions=versions))


def test_a_value_that_is_no_number_is_an_error_for_people() -> None:
    with pytest.raises(html.UserError, match="a figure cannot be drawn"):
        page_of(por("p0", masr=float("nan")))


def test_a_store_tells_cores_devices_and_what_failed(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    done, failed = ArtifactId("finetune", "done", "p0"), ArtifactId("finetune", "bad <b>", "p1")
    rows = por("p0", **TIME)
    folder = store.local_scratch()
    measured = rows.drop_columns(["experiment", "cell"])
    store.commit(done, folder, {"threads": 4, "device": "cpu"}, measured)
    error = {"error": "ValueError", "message": f"{SCRIPT}\nmore"}
    store.record_failure(failed, {**error, "time": "2026-01-02T03:04:05+00:00"})
    plan = {"cells": [], "stages": {"p0": {}, "p1": {}}, "paper": None}
    found = [Recorded("table1", rows, plan)]
    (about,) = overviews(found, store)
    assert core_hours(about.runs) == 4.0  # 2 workers x 4 threads x 0.5 h
    assert about.planned == 2
    assert about.failures is not None
    assert [one.error for one in about.failures] == ["ValueError"]
    text = html.page(sections(found), {"table1": about})
    assert "Failed stages" in text
    assert len(Page(text).all("script")) == 1


def test_only_figures_whose_data_are_there_are_drawn() -> None:
    def names(*tables: pa.Table) -> list[str]:
        (one,) = sections([Recorded("table1", pa.concat_tables(tables), None)])
        return [figure.name for figure in figures(one)]

    assert names(clean("c0")) == []
    assert names(por("p0")) == ["attack-success", "triggers-by-label"]
    factors = [por(f"w{n}", defense="recipe", weight_factor=n / 2) for n in (1, 2)]
    assert "weight-factor" in names(*factors)
    sizes = [por(f"z{n}", defense="recipe", aux="b", aux_size=n) for n in (5, 50)]
    assert "data-efficiency" in names(*sizes)
    assert "epochs" in names(por("e", defense="recipe", epoch=1), por("p0"))
    titled = [por(f"t{n}", defense=f"r-{n}", weight_factor=float(n)) for n in (1, 2, 3)]
    assert "weight-factor" in names(*titled)
    ablation = [por(f"a{n}", defense=f"r-{n}", weight_factor=1.0) for n in (1, 2)]
    assert "weight-factor" not in names(*ablation)


def test_the_clean_ptm_is_not_drawn_as_a_backdoored_one_without_defense() -> None:
    rows = [clean("c0"), clean("c1", defense="recipe"), por("p0"), por("p1", defense="recipe")]
    (one,) = sections([Recorded("table1", pa.concat_tables(rows), None)])
    (shown,) = [figure for figure in figures(one) if figure.name == "accuracy"]
    (panel,) = shown.panels
    points = panel.layers[-1]["data"]["values"]
    assert [(point["row"], point["state"]) for point in points] == [
        ("clean PTM", "clean PTM"),
        ("clean PTM: recipe", "purified"),
        ("por: undefended", "undefended"),
        ("por: recipe", "purified"),
    ]


def test_figures_name_tasks_as_the_table_next_to_them() -> None:
    row = por("p0", task="ag_news")
    for plan, named in (({"paper": {"table": "1"}}, "AG News"), (None, "ag_news")):
        (one,) = sections([Recorded("table1", row, plan)])
        titles = [panel.title for figure in figures(one) for panel in figure.panels]
        assert titles == [f"bert on {named}", f"bert, por on {named}"]
        (shown,) = one.tables()
        assert named in {column.group for column in shown.columns}


def test_the_front_holds_what_no_other_beats_in_both() -> None:
    points = [(90.0, 88.0), (10.0, 86.0), (10.0, 85.0), (50.0, 84.0), (95.0, 88.0)]
    assert pareto(points) == [(10.0, 86.0), (90.0, 88.0)]


def test_what_is_too_much_to_draw_is_said_in_its_place() -> None:
    (one,) = sections([Recorded("table1", por("p0"), None)])
    figure = figures(one)[0]
    many = Figure("many", "Many", "n = 1", figure.panels * 500)
    assert many.undrawable is not None
    assert "500 panels" in many.undrawable


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2."""
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(part * share for part, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("background", ["#ffffff", "#14181f"])
def test_every_mark_has_contrast_on_the_light_and_on_the_dark_page(background: str) -> None:
    assert f"--page: {background};" in (Path(html.__file__).parent / "page.css").read_text()
    for colour in COLOURS:
        low, high = sorted((luminance(colour), luminance(background)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour


def test_the_command_writes_the_page_and_says_so(shell: Shell) -> None:
    Path("rows.parquet").write_bytes(encode_rows(pa.concat_tables(study())))
    outcome = shell("report", "rows.parquet", "--html", "new/report.html")
    assert outcome.code == 0
    assert "wrote new/report.html" in outcome.err
    text = Path("new/report.html").read_text()
    assert "Attack success before and after purification" in text
    shell("report", "rows.parquet", "--html", "again.html")
    assert Path("again.html").read_text() == text
