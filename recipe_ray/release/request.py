"""From words on the command line to specs: a model, a corpus, an attack, changed fields."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from recipe_ray.base.errors import SpecError, suggest
from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import Spec, explain
from recipe_ray.base.strict_yaml import read_yaml
from recipe_ray.data.corpus import CORPORA, Corpus
from recipe_ray.experiment.files import apply_change
from recipe_ray.models.family import MODELS, ModelRef
from recipe_ray.tasks.task import TASKS, Task

# the model whose `source` may be a hub id
RELEASED = "bert"

S = TypeVar("S", bound=Spec)


def parse_model(text: str, *, allow_pickle: bool, revision: str | None) -> ModelRef:
    """Return the model of a registered name, a YAML mapping, a local folder or a hub id, pinned."""
    flags = {"allow_pickle": allow_pickle or None, "revision": revision}
    given = {name: value for name, value in flags.items() if value is not None}
    value = _plain(text, "MODEL")
    if isinstance(value, dict):
        return _model({**given, **value})
    if text in MODELS:
        return _model({"name": text, **given})
    folder = Path(text).expanduser()
    if not folder.is_dir() and "/" not in text:
        near = suggest(text, MODELS)
        raise SpecError(
            f"MODEL {text!r}{near}: neither a folder here, nor a hub id (owner/name), nor one of: "
            + ", ".join(MODELS)
        )
    return _model({"name": _family(folder), "source": text, **given})


def parse_corpus(text: str, size: int | None, model: ModelRef) -> Corpus:
    """Return the corpus of a registered name, a YAML mapping, or the user's own file or folder.

    What such a file holds is what the model learns from: texts, images with labels, or pairs.
    """
    value = _plain(text, "--aux")
    if not isinstance(value, dict) and text not in CORPORA and Path(text).expanduser().exists():
        value = {"name": _own_corpus(model), "path": text}
    if isinstance(value, str):
        value = {"name": value}
    if size is not None:
        value["size"] = size
    corpus: Corpus = parse_component(CORPORA, value, "--aux")
    return corpus


def parse_component(registry: Registry[Any], value: Any, where: str) -> Any:
    """Return a component; errors name `where` it was given."""
    try:
        return registry.parse(value)
    except ValidationError as error:
        raise explain(error, where) from None
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def parse_fields(name: str, changes: list[str]) -> dict[str, Any]:
    """Return a mapping with the name and every change `a.b=value` in it."""
    fields: dict[str, Any] = {"name": name}
    for change in changes:
        apply_change(fields, change)
    return fields


def parse_task(text: str) -> Task:
    """Return the task of a registered name or a YAML mapping."""
    task: Task = parse_component(TASKS, _plain(text, "--task"), "--task")
    return task


def changed(spec: S, changes: list[str]) -> S:
    """Return a copy of a spec after every change `a.b=value`; `a={b: value}` says the same."""
    fields = spec.model_dump(mode="json")
    fields.pop("name", None)
    for change in changes:
        for single in _spread(change):
            apply_change(fields, single)
    try:
        return type(spec).model_validate(fields)
    except ValidationError as error:
        raise explain(error, "--set") from None


def set_fields(changes: list[str]) -> frozenset[str]:
    """Return the dotted names of the fields that changes set (`fit.steps`); null sets nothing."""
    values: dict[str, str] = {}
    for change in changes:
        for single in _spread(change):
            name, _, text = single.partition("=")
            values[name] = text
    return frozenset(name for name, text in values.items() if _as_yaml(text) is not None)


def _spread(change: str) -> Iterator[str]:
    """Yield a change of a mapping as one change for each of its fields."""
    name, _, text = change.partition("=")
    value = _as_yaml(text)
    if not isinstance(value, dict) or not value:
        yield change
        return
    for field, inner in value.items():
        yield from _spread(f"{name}.{field}={json.dumps(inner, default=str)}")


def _as_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None  # `apply_change` says what is wrong


def _family(folder: Path) -> str:
    # a hub id, and a folder of no family, go to the one that reads hub ids and says what it lacks
    known = (name for name in MODELS if MODELS.get(name).recognises(folder))
    return next(known, RELEASED)


def _own_corpus(model: ModelRef) -> str:
    own = (name for name in CORPORA if CORPORA.get(name).model_fields["path"].is_required())
    return next(name for name in own if CORPORA.get(name).holds >= model.learns_from)


def _model(value: Any) -> ModelRef:
    model: ModelRef = parse_component(MODELS, value, "MODEL")
    return model.pinned().as_found()


def _plain(text: str, where: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return read_yaml(text)
    except SpecError as error:
        raise SpecError(f"{where}: not a valid YAML mapping: {error}") from None
