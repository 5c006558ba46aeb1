"""Cards in the hub's format: what is taken over from the source's card, and what is measured."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from samples import corpus_file, task_fields, tiny_folder
from shell import Shell, shell

from recipe_ray.api.arguments import parse_model
from recipe_ray.api.metadata import check_head, head, provenance, read_card

__all__ = ["shell"]  # a fixture

CARD = """---
license: {licence}
language: [en, de, no, "<b>"]
pipeline_tag: fill-mask
tags: [a, backdoored]
base_model: someone/else
---
# A model
"""
QUICK = ["--set", "fit.steps=3", "--set", "fit.precision=fp32", "--accept-harm", "--no-scan", "-q"]


def given(folder: Path, card: str | None) -> Path:
    """Return a copy of the tiny model, with a card."""
    place = Path(shutil.copytree(tiny_folder(), folder / "given"))
    if card is not None:
        (place / "README.md").write_text(card)
    return place


def test_a_purified_models_card_is_one_of_the_hub_with_all_that_is_known(shell: Shell) -> None:
    source = given(shell.folder, CARD.format(licence="apache-2.0"))
    aux, task = corpus_file(shell.folder), task_fields(shell.folder)
    words = ["--evaluate", str(task), "--triggers", "cf", "--floor", tiny_folder()]
    quick = ["--evaluate-set", "steps=3", "--evaluate-set", "precision=fp32"]
    done = shell("purify", source, "--aux", aux, "--out", "clean", *QUICK, *words, *quick)
    assert done.code == 0, done.err
    rows = [line for line in done.out.splitlines() if line.startswith(("percent", "ACC ", "MASR "))]
    assert rows[0].split() == ["percent", "before", "after", "after", "-", "before", "floor"]
    assert [row.split()[0] for row in rows[1:]] == ["ACC", "MASR"]
    card = ModelCard.load(shell.folder / "clean" / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["en", "de", "no"]
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "fill-mask"
    assert set(data["tags"]) == {"purified", "purified-with-warnings", "source-backdoored"}
    assert "base_model" not in data  # a folder here is no model of the hub
    assert len(data["recipe_ray"]["data"]["sha256"]) == 64
    metrics = {one.metric_type: one.metric_value for one in card.data.eval_results}
    assert set(metrics) == {"accuracy", "AASR", "MASR"}
    text = " ".join(card.text.split())
    assert "licence: apache-2.0, taken over" in text
    assert "| percent | before | after | after - before | floor |" in text
    assert f"sha256 {data['recipe_ray']['data']['sha256']}" in text
    assert "backdoored on purpose" in text
    assert "the purifier saw neither" in text


def test_the_evaluation_is_in_the_result_and_changes_no_weight(shell: Shell) -> None:
    import json

    from safetensors.torch import load_file

    aux, task = corpus_file(shell.folder), task_fields(shell.folder)
    words = ["purify", tiny_folder(), "--aux", aux, *QUICK]
    shell(*words, "--out", "plain")
    quick = ["--evaluate-set", "steps=3", "--evaluate-set", "precision=fp32"]
    done = shell(*words, "--out", "seen", "--evaluate", str(task), "--triggers", "cf,mn", *quick)
    assert done.code == 0, done.err
    one, two = (load_file(shell.folder / out / "model.safetensors") for out in ("plain", "seen"))
    assert all(bool((one[name] == two[name]).all()) for name in one)
    found = json.loads((shell.folder / "seen/result.json").read_text())["evaluation"]
    assert found["triggers"] == ["cf", "mn"]
    assert {"acc", "masr", "asr cf", "asr mn"} <= found["before"].keys() & found["after"].keys()
    assert "floor" not in found
    assert json.loads((shell.folder / "plain/result.json").read_text())["evaluation"] is None


def snapshot(folder: Path) -> Path:
    """Return the tiny model as the hub's cache has one, with links into its blobs."""
    home = folder / "models--someone--tiny"
    place = home / "snapshots" / ("ab" * 20)
    place.mkdir(parents=True)
    (home / "blobs").mkdir()
    source = given(folder, CARD.format(licence="[mit, cc-by-4.0]"))
    for number, file in enumerate(source.iterdir()):
        shutil.copy(file, home / "blobs" / str(number))
        (place / file.name).symlink_to(home / "blobs" / str(number))
    return place


def test_a_model_of_the_hub_is_named_with_its_commit_and_the_relation(tmp_path: Path) -> None:
    model = parse_model(str(snapshot(tmp_path)))
    source = provenance(model)
    assert (source.repo, source.commit) == ("someone/tiny", "ab" * 20)
    content = {"source": "hub", "repo": "Salesforce/wikitext", "revision": "cd" * 20}
    data = ModelCard(head(model, source, tmp_path, ["purified"], content=content)).data
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("someone/tiny", "finetune")
    assert data.license == ["mit", "cc-by-4.0"]
    assert data.datasets == ["Salesforce/wikitext"]
    assert data.to_dict()["recipe_ray"]["base_model_revision"] == "ab" * 20
    assert "at commit abab" in source.said[0]


ODD: dict[str, tuple[Any, str]] = {
    "none": (None, "no card"),
    "no head": ("# A model", "no metadata"),
    "not a mapping": ("---\n- a\n---\n", "no metadata"),
    "no licence": ("---\ntags: []\n---\n", "names no licence"),
    "a licence that is none": ('---\nlicense: "<b>x"\n---\n', "names no licence"),
    "a licence that is a mapping": ("---\nlicense: {a: b}\n---\n", "names no licence"),
    "aliases without end": (
        "---\na: &a [x, x]\nb: [" + "*a, " * 9 + "]\nc: *c\n---\n",
        "cannot be",
    ),
    "a key twice": ("---\nlicense: mit\nlicense: gpl\n---\n", "given twice"),
    "not text": (b"---\nlicense: \xff\n---\n", "cannot be read"),
    "too large": (b"-" * 2**21, "bytes"),
}


@pytest.mark.parametrize(("content", "said"), ODD.values(), ids=ODD)
def test_a_card_that_is_not_in_order_is_left_out_and_that_is_said(
    tmp_path: Path, content: Any, said: str
) -> None:
    if content is not None:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "README.md").write_bytes(data)
    card = read_card(tmp_path / "README.md", tmp_path)
    assert card.licence == {}
    assert said in card.problem


def test_a_card_that_is_a_pipe_or_leads_elsewhere_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "README.md")
    assert "named pipe" in read_card(tmp_path / "README.md", tmp_path).problem
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_text(CARD.format(licence="mit"))
    (tmp_path / "inside" / "README.md").symlink_to(tmp_path / "secret")
    assert "link" in read_card(tmp_path / "inside/README.md", tmp_path / "inside").problem


def test_a_licence_of_its_own_keeps_name_and_link(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.write_text("---\nlicense: other\nlicense_name: acme-1\nlicense_link: https://a.b/c\n---\n")
    assert read_card(file, tmp_path).licence == {
        "license": "other",
        "license_name": "acme-1",
        "license_link": "https://a.b/c",
    }


@pytest.mark.parametrize(
    "card",
    [
        "# no head",
        "---\n- a list\n---\n",
        "---\nbase_model: not//a repo\n---\n",
        "---\ndatasets: [../up]\n---\n",
        "---\nmodel-index:\n- name: a\n  results: [{task: {}}]\n---\n",
    ],
)
def test_the_check_without_network_refuses_what_the_hub_would(card: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_head(card)
