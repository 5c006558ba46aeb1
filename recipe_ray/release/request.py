"""From words on the command line to specs: a model, a corpus, an attack, changed fields."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from recipe_ray.base.errors import ModelError, SpecError, suggest
from recipe_ray.base.loading import check_adapter
from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import Spec, explain
from recipe_ray.data.corpus import CORPORA, Corpus
from recipe_ray.data.hub import fetch_model
from recipe_ray.experiment.files import apply_change
from recipe_ray.models.contents import check_folder_given, check_readable, families_of
from recipe_ray.models.family import MODELS, ModelRef
from recipe_ray.tasks.task import TASKS, Task

# the model whose `source` may be a hub id
RELEASED = "bert"

S = TypeVar("S", bound=Spec)


def parse_model(
    text: str, *, allow_pickle: bool, revision: str | None, ignore_adapter: bool = False
) -> ModelRef:
    """Return the model of a registered name, a YAML mapping, a local folder or a hub id, pinned.

    Raises SpecError for what is none of these, ModelError for a folder of a kind that is not read:
    before any data is looked at, which would be blamed for it.
    """
    flags = {
        "allow_pickle": allow_pickle or None,
        "ignore_adapter": ignore_adapter or None,
        "revision": revision,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    value = _plain(text, "MODEL")
    if isinstance(value, dict):
        return _model({**given, **value})
    if text in MODELS:
        return _model({"name": text, **given})
    folder = Path(text).expanduser()
    check_folder_given(folder)
    if not folder.is_dir() and "/" not in text:
        near = suggest(text, MODELS)
        raise SpecError(
            f"MODEL {text!r}{near}: neither a folder here, nor a hub id (owner/name), nor one of: "
            + ", ".join(MODELS)
        )
    if not folder.is_dir() and text.startswith(("/", ".", "~")):
        raise ModelError(f"MODEL: folder {text} does not exist")
    if not folder.is_dir():
        folder = fetch_model(text, revision, allow_pickle=allow_pickle).path
    check_readable(folder, shown=text)
    check_adapter(folder, ignore=ignore_adapter)
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
    """Return a copy of a spec after every change `a.b=value`."""
    fields = spec.model_dump(mode="json")
    fields.pop("name", None)
    for change in changes:
        apply_change(fields, change)
    try:
        return type(spec).model_validate(fields)
    except ValidationError as error:
        raise explain(error, "--set") from None


def _family(folder: Path) -> str:
    # a folder of no family goes to the one that says what it lacks
    return next(iter(families_of(folder)), RELEASED)


def _own_corpus(model: ModelRef) -> str:
    own = (name for name in CORPORA if CORPORA.get(name).model_fields["path"].is_required())
    return next(name for name in own if CORPORA.get(name).holds >= model.learns_from)


def _model(value: Any) -> ModelRef:
    model: ModelRef = parse_component(MODELS, value, "MODEL")
    return model.pinned()


def _plain(text: str, where: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: not a valid YAML mapping: {error}") from None
