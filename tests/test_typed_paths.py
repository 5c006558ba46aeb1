"""Every place on the command line for a name, path or mapping, and what people wrongly put there.

One line says what is wrong with it, and what to type; nothing is read, made or blamed beyond.
"""

from functools import cache
from pathlib import Path

import pytest
import yaml
from samples import corpus_file, tiny_folder
from shell import Shell, shell

from recipe_ray.base.paths import existing_path, looks_like_path

__all__ = ["shell"]  # a fixture

MODEL = "a-model"  # stands for the folder of one: in the names of tests no path may change
AUX, OUT = ["--aux", "texts.txt"], ["--out", "o"]
# a place: the command, with X where the wrong thing goes
PLACES: dict[str, list[str]] = {
    "MODEL": ["evaluate", "X", "--task", "snippets"],
    "--aux": ["purify", MODEL, "--aux", "X", *OUT],
    "--task": ["evaluate", MODEL, "--task", "X"],
    "--attack": ["backdoor", MODEL, "--attack", "X", *OUT],
    "--out": ["purify", MODEL, *AUX, "--out", "X"],
    "--data": ["purify", MODEL, *AUX, *OUT, "--data", "X"],
    "plan": ["plan", "X"],
    "sweep": ["sweep", "X"],
    "search": ["search", "X"],
    "debug": ["debug", "X", "--cell", "a"],
    "--cluster": ["plan", "grid.yaml", "--cluster", "X"],
    "plan --store": ["plan", "grid.yaml", "--store", "X"],
    "status --store": ["status", "--store", "X"],
    "report": ["report", "X"],
    "--figures": ["report", "kept", "--figures", "X"],
    "--html": ["report", "kept", "--html", "X"],
    "--export": ["report", "kept", "--export", "X"],
}
READ = ("MODEL", "--aux", "--task", "--data", "plan", "sweep", "search", "debug", "--cluster")
FILES = ("plan", "sweep", "search", "debug", "--cluster")
FOLDERS = ("--out", "--data", "plan --store", "status --store", "--figures", "--export")
OUTPUTS = ("--out", "--figures", "--html", "--export")
URLS = tuple(place for place in PLACES if place not in ("plan --store", "status --store", "report"))
MAPPINGS = ("MODEL", "--aux", "--task", "--attack")

CASES = [
    *((place, "", "it is empty; give") for place in PLACES),
    *((place, "nowhere/in/x.yaml", "there is no folder nowhere") for place in (*READ, "report")),
    *((place, "text.txt", "did you mean 'texts.txt'?") for place in ("--aux", "--task")),
    *((place, "gird.yaml", "did you mean 'grid.yaml'?") for place in FILES),
    *((place, "foldr/", "did you mean 'folder'?") for place in (*READ, "status --store", "report")),
    *((place, "*.yaml", "patterns are not expanded") for place in READ),
    *((place, "folder", "is a folder") for place in FILES),
    *((place, "texts.txt", "a file") for place in FOLDERS),
    *((place, "texts.txt/in", "is a file") for place in OUTPUTS),
    *((place, "https://example.org/a/b", "a URL") for place in URLS if place != "--attack"),
    *((place, "{", "not a valid YAML mapping") for place in MAPPINGS),
    *((place, "{a: 1}", "the mapping has no `name`") for place in MAPPINGS),
    *((place, "[a, b]", "not a list") for place in MAPPINGS),
    *((place, "[a, b]", "not a path") for place in (*FILES, "--out", "--data", "report")),
    ("MODEL", "texts.txt", "a file; give the folder that has it"),
    ("MODEL", "weights.safetensors", "give the folder that has it"),
    ("MODEL", "https://huggingface.co/a/b/tree/main", "the hub id of that page is a/b;"),
    ("MODEL", "bert", "give its folder or hub id instead, or '{name: bert, source: ...}'"),
    ("MODEL", "folder/berd", "from the hub: '{name: bert, source: folder/berd}'"),
    ("--aux", "texts.txt,grid.yaml", "2 files; give one, or a folder"),
    ("--aux", MODEL, "is the folder of a model"),
    ("--aux", "sst2", "belongs to another kind (task)"),
    ("--aux", "file", "give a file or folder instead, or '{name: file, path: ...}'"),
    ("--task", MODEL, "is the folder of a model"),
    ("--task", "wikitext", "belongs to another kind (corpus)"),
    ("--task", "file", "its name alone is not enough"),
    ("--attack", "por.yaml", "did you mean 'por'?"),
    ("sweep", "search.yaml", "`recipe-ray` search takes it"),
    ("search", "grid.yaml", "`recipe-ray` plan, sweep and debug take it"),
    ("status --store", MODEL, "a folder with config.json"),
    ("--html", "folder", "it is a folder; name a file in it"),
    ("report", MODEL, "no results of an experiment"),
    ("report", "grid.yaml", "another kind of file"),
]


@cache
def model() -> str:
    """Return the folder of a model that opens."""
    return str(tiny_folder())


def with_model(words: list[str]) -> list[str]:
    """Return the words with the folder in MODEL's place."""
    return [model() if word == MODEL else word for word in words]


def fill(folder: Path) -> None:
    """Write what the cases name."""
    corpus_file(folder)
    grid = {"models": ["minilm"], "tasks": ["snippets"]}
    (folder / "grid.yaml").write_text(yaml.safe_dump({"name": "grid", "grid": grid}))
    whole = ("model", "attack", "defense", "trials", "epochs", "quick", "confirm")
    search = {"name": "s", **dict.fromkeys(whole, 1)}
    (folder / "search.yaml").write_text(yaml.safe_dump(search))
    (folder / "weights.safetensors").write_bytes(b"")
    (folder / "folder").mkdir()
    (folder / "kept").mkdir()


@pytest.mark.parametrize(("place", "wrong", "said"), CASES)
def test_a_wrong_thing_in_any_place_is_one_clear_error(
    shell: Shell, place: str, wrong: str, said: str
) -> None:
    fill(shell.folder)
    before = sorted(path.name for path in shell.folder.iterdir())
    typed = [wrong if word == "X" else word for word in PLACES[place]]
    message = shell.fails(*with_model(typed))
    assert said in message
    assert message.startswith("error: ")
    assert len(message) < 600
    assert sorted(path.name for path in shell.folder.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", MODEL, "--task", "snippets", "--triggers", "[cf, mn]"], "not a YAML list"),
        (["evaluate", MODEL, "--task", "snippets", "--triggers", "texts.txt"], "a file; give the"),
        (["evaluate", MODEL, "--task", "snippets", "--revision", "abc"], "only hub models"),
        (["evaluate", MODEL, "--task", "snippets", "--text-column", ""], "it is empty"),
        (["evaluate", MODEL, "--task", "cifar10", "--text-column", "a"], "no column of texts"),
        (["purify", MODEL, "--aux", "texts.txt", "--text-column", "a", *OUT], "columns: text"),
        (["list", "por"], "`recipe-ray list attacks` shows 'por'"),
        (["purify", MODEL, "--aux", "texts.txt", "--aux-size", "9" * 23, *OUT], "for '--aux-size'"),
        (["evaluate", MODEL, "--task", "snippets", "--seed", "9" * 23], "value for '--seed'"),
    ],
)
def test_other_mistakes_say_what_to_type(shell: Shell, words: list[str], said: str) -> None:
    fill(shell.folder)
    assert said in shell.fails(*with_model(words))


def test_an_empty_cell_is_no_cell(shell: Shell) -> None:
    fill(shell.folder)
    file = shell.folder / "grid.yaml"
    grid = {"models": ["minilm"], "tasks": [{"name": "snippets", "train_size": 10}]}
    file.write_text(yaml.safe_dump({"name": "grid", "grid": grid}))
    assert "--cell: it is empty" in shell.fails("debug", file, "--cell", "")


def test_a_path_may_begin_with_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b.yaml").write_text("")
    assert existing_path("~/a b.yaml", "FILE", "a file", "file") == tmp_path / "a b.yaml"


@pytest.mark.parametrize("text", ["a/b", "x.csv", "./x", "~", "~/x", "x.tar.gz", "a\\b", ".."])
def test_a_separator_or_suffix_makes_a_word_a_path(text: str) -> None:
    assert looks_like_path(text)


@pytest.mark.parametrize("text", ["sst2", "paper-por", "ag_news", "v1.5", ""])
def test_a_plain_word_is_a_name(text: str) -> None:
    assert not looks_like_path(text)
