"""Text from outside moves no cursor, makes no heading and ends somewhere, wherever it is shown."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from shell import Shell, shell
from store_samples import POR, driven, leave_lease

from recipe_ray.api.card import backdoored_card
from recipe_ray.attacks.attack import ATTACKS
from recipe_ray.base.errors import DataError, in_a_line
from recipe_ray.base.printable import in_a_row, in_html, in_markdown, printable
from recipe_ray.report.render import Terminal, markdown
from recipe_ray.report.tables import Column, Table
from recipe_ray.store.store import Store

__all__ = ["shell"]  # a fixture

HOSTILE = [
    "\x1b[2J\x1b[31mred",
    "\x1b]0;title\x07",
    "\x9b31m",
    "a\rb\x08\x7f",
    "\u202egnp.exe",
    "\u200b\ufeff",
    "\ud800",
    "n" * 100_000,
    "many words " * 100_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_is_shown_is_printable_and_bounded(text: str) -> None:
    for shown in (
        printable(text),
        in_a_row(text),
        in_markdown(text),
        in_html(text),
        str(DataError(text)),
        in_a_line(RuntimeError(text)),
    ):
        assert shown.replace("\n", "").isprintable()
        assert len(shown) < 11_000
        shown.encode()


def test_lines_and_plain_text_stay_as_they_are() -> None:
    for text in ("two\nlines\twith a tab", "naïve café, 中文, 😀", "≈ ≡ ∈", ""):
        assert printable(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "# heading",
        "<img src=x onerror=alert(1)>",
        "[link](javascript:alert(1))",
        "![](https://evil.example/x.png)",
        "a | b",
        "**bold** _it_ `code` ~~gone~~",
        "&lt;script&gt;",
        "first\n# second line",
        "https://evil.example and www.evil.example",
    ],
)
def test_markdown_shows_signs_as_signs(text: str) -> None:
    shown = in_markdown(text)
    assert "\n" not in shown
    for sign in "<>[]|*`#~":
        for place, char in enumerate(shown):
            is_ours = shown[place:].startswith(("<span></span>", "></span>", "</span>", ">"))
            assert char != sign or shown[place - 1] == "\\" or (sign in "<>" and is_ours)
    assert "https:" not in shown
    assert "www." not in shown


def test_names_with_underscores_stay_readable_in_markdown() -> None:
    assert in_markdown("ag_news-dev 1.5 -0.3") == "ag_news-dev 1.5 -0.3"


def hostile_table() -> Table:
    name = "<b>x</b>\x1b[2J|" + "n" * 1000
    return Table(name, (Column("", name), Column(name, "ACC")), ((name, "1"),), "", (name,))


def test_a_report_shows_hostile_names_as_text() -> None:
    said = io.StringIO()
    Console(file=said, width=80).print(Terminal([hostile_table()]))
    assert said.getvalue().replace("\n", "").isprintable()
    marked = markdown([hostile_table()])
    assert marked.replace("\n", "").isprintable()
    assert "<b>" not in marked
    assert len(marked) < 20_000


def test_a_card_shows_hostile_names_as_text_and_claims_no_more_than_was_measured() -> None:
    attack = ATTACKS.parse({"name": "por", "triggers": ["<script>", "## x"]})
    hostile = "# m\n<h1>x</h1>"
    card = backdoored_card("---\n---\n", hostile, attack, {"loss.poison": 99.0}, [hostile])
    assert "<script>" not in card
    assert "<h1>" not in card
    assert "\n# m" not in card
    assert "inherits" not in card
    assert "may inherit" in card
    assert "What is not claimed" in card


def test_status_shows_hostile_notes_of_a_shared_store_as_text(shell: Shell) -> None:
    store = Store.open(shell.folder / "store")
    store.record_failure(POR, {"error": "E\x1b[2J", "message": "\x1b]0;t\x07" + "m" * 100_000})
    leave_lease(store, "m-1-1", driven("e\x1b[31m", host="\x1b[2J"))
    for words in ([], ["--json"]):
        ended = shell("status", "--store", shell.folder / "store", *words)
        assert ended.code == 0
        assert ended.out.replace("\n", "").isprintable()
        assert len(ended.out) < 10_000
    assert json.loads(ended.out)["failed"]


def test_warnings_about_data_show_their_names_as_text(shell: Shell, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("\x1b[2Jtext,la\x07bel\na b c,1\n")
    said = shell.fails("evaluate", "minilm", "--task", table)
    assert said.isprintable()
    assert "\\x1b[2Jtext" in said
