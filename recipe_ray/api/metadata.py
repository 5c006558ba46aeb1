"""The head of a model card, which the hub reads: built and checked with `huggingface_hub`.

What the source's own card says of licence and language is taken over; it is a file from outside,
so it is read as one, and what is not in order is left out and said. The hub's own check
(`RepoCard.validate`) needs the network. What it asks for can be told here: the block is YAML, the
evaluation results have their fields, names of repositories are possible ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe_ray import __version__
from recipe_ray.base.errors import DataError, UserError
from recipe_ray.base.foreign import is_there, read_foreign
from recipe_ray.base.printable import in_a_row
from recipe_ray.base.strict_yaml import read_yaml
from recipe_ray.data.hub import check_repo, fetch_card, snapshot_in

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from recipe_ray.models.family import ModelRef

CARD = "README.md"
_LARGEST = 2**20  # bytes of a card
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8}){0,2}|code|multilingual")
_LINK = re.compile(r"(https?://[^\s<>\"'`]{1,500}|[A-Za-z0-9._-]{1,100})")
# the end of an architecture's name in config.json, and what such a model does
_DOES = {
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMultipleChoice": "multiple-choice",
    "ForImageClassification": "image-classification",
    "Model": "feature-extraction",
}


@dataclass(frozen=True)
class SourceCard:
    """What a model's own card says that its copies must say, too; `problem`: why nothing is known.

    `licence` has the fields of the hub: `license`, and for `other` its name and link.
    """

    licence: Mapping[str, Any] = field(default_factory=dict)
    language: tuple[str, ...] = ()
    pipeline_tag: str | None = None
    backdoored: bool = False
    problem: str = ""


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from; `repo` and `commit` if that is the hub."""

    card: SourceCard
    repo: str | None = None
    commit: str | None = None

    @property
    def said(self) -> tuple[str, ...]:
        """Sentences for people: the model that this one was made of, and its licence."""
        place = "made of a local model; recipe_ray.json has the hashes of its files"
        if self.repo is not None:
            place = f"made of {self.repo} on the Hugging Face hub, at commit {self.commit}"
        licence = self.card.licence.get("license")
        shown = licence if isinstance(licence, str) else ", ".join(licence or ())
        said = f"licence: {shown}, taken over from the source's card"
        unknown = f"licence: not known ({self.card.problem}); find it out before you pass this on"
        marked = "the source's card says that it was backdoored on purpose, for research"
        return (place, said if shown else unknown, *([marked] if self.card.backdoored else []))


def provenance(model: ModelRef) -> Provenance:
    """Return where a model comes from; its card is fetched if it lies on the hub."""
    folder = model.home()
    if folder is None:
        return Provenance(SourceCard(problem="it has no card"))
    snapshot = snapshot_in(folder)
    if snapshot is None:
        return Provenance(read_card(folder / CARD, folder))
    repo, commit = snapshot
    if is_there(folder / CARD):
        return Provenance(read_card(folder / CARD, folder), repo, commit)
    try:
        file = fetch_card(repo, commit)
    except UserError as error:
        return Provenance(SourceCard(problem=str(error)), repo, commit)
    card = SourceCard(problem="it has no card") if file is None else read_card(file, file.parent)
    return Provenance(card, repo, commit)


def read_card(file: Path, within: Path) -> SourceCard:
    """Return what a card says; if it cannot be read or lacks something, `problem` says so."""
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if not is_there(file):
        return SourceCard(problem="it has no card")
    try:
        content = read_foreign(file, _LARGEST, within=within, error=DataError)
        block = REGEX_YAML_BLOCK.search(content.decode("utf-8-sig"))
        values = read_yaml(block[2]) if block is not None else None
    except (UserError, UnicodeDecodeError) as error:
        return SourceCard(problem=f"its card cannot be read: {in_a_row(str(error), 200)}")
    if not isinstance(values, dict):
        return SourceCard(problem="its card has no metadata")
    licence = _licence(values)
    said = values.get("pipeline_tag")
    tags = values.get("tags")
    return SourceCard(
        licence,
        tuple(_matching(values.get("language"), _LANGUAGE)),
        said if isinstance(said, str) and _WORD.fullmatch(said) else None,
        isinstance(tags, list) and "backdoored" in tags,
        "" if licence else "its card names no licence",
    )


def _licence(values: Mapping[str, Any]) -> dict[str, Any]:
    named = _matching(values.get("license"), _WORD)
    if not named:
        return {}
    found: dict[str, Any] = {"license": named[0] if len(named) == 1 else named}
    for name in ("license_name", "license_link"):
        if (known := _matching(values.get(name), _LINK)) and found["license"] == "other":
            found[name] = known[0]
    return found


def _matching(value: Any, form: re.Pattern[str]) -> list[str]:
    # YAML reads `no`, Norwegian, as false
    listed = value if isinstance(value, list) else [value]
    values = ["no" if one is False else one for one in listed]
    return [one for one in values if isinstance(one, str) and form.fullmatch(one)][:50]


def head(
    model: ModelRef,
    source: Provenance,
    folder: Path,
    tags: Sequence[str],
    *,
    content: Mapping[str, Any],
    results: Sequence[EvalResult] = (),
) -> str:
    """Return the head of a card, from `---` to `---`.

    `folder` has the model as it is published, `content` identifies the data by name. A hub data set
    among them is named as such; the hash of all is in `recipe_ray`.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        **source.card.licence,
        base_model=source.repo,
        base_model_relation="finetune" if source.repo is not None else None,
        language=list(source.card.language) or None,
        library_name=model.opens_with,
        pipeline_tag=source.card.pipeline_tag or _does(folder) or model.pipeline_tag,
        tags=list(tags),
        datasets=hub_data_sets(content) or None,
        eval_results=list(results) or None,
        model_name=f"{model.label()}, purified" if results else None,
        recipe_ray={
            "version": __version__,
            **({"base_model_revision": source.commit} if source.commit is not None else {}),
            "data": json.loads(json.dumps(content)),
        },
    )
    block = f"---\n{data.to_yaml()}\n---\n"
    check_head(block)
    return block


def check_head(card: str) -> None:
    """Raise ValueError unless the hub's client reads the head of a card, and names of repositories.

    The same that `RepoCard.validate` asks the hub, as far as it can be told without.
    """
    from huggingface_hub import ModelCard

    data: Any = ModelCard(card).data  # untyped
    if not data.to_dict():
        raise ValueError("the card has no metadata")
    for repo in (data.base_model, *(data.datasets or ())):
        if repo is not None:
            check_repo(repo)


def hub_data_sets(content: Any) -> list[str]:
    """Return the hub data sets that a content names, at any depth."""
    if isinstance(content, Mapping):
        own = [str(content["repo"])] if content.get("source") == "hub" else []
        inner = [one for value in content.values() for one in hub_data_sets(value)]
        return sorted({*own, *inner})
    return []


def hashes(content: Any, place: str = "") -> list[str]:
    """Return what identifies the data, one sentence per hash or revision."""
    if not isinstance(content, Mapping):
        return []
    found = [
        f"{place or 'data'}: {name} {content[name]}"
        for name in ("sha256", "revision")
        if isinstance(content.get(name), str)
    ]
    for name, value in content.items():
        found += hashes(value, f"{place}.{name}" if place else name)
    return found


def _does(folder: Path) -> str | None:
    """Return the pipeline tag of what config.json says that the model is; it is our own file."""
    config = folder / "config.json"
    named = json.loads(config.read_text()).get("architectures") if config.is_file() else None
    known = str(named[0]) if isinstance(named, list) and named else ""
    return next((does for end, does in _DOES.items() if known.endswith(end)), None)
