"""From words on the command line to specs: a model, a corpus, an attack, changed fields, options.

A path stays text until it is checked here, because an empty text made into a `Path` is the current
folder.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from pydantic import ValidationError

from recipe_ray.api.own_data import FORMS, Found, asked_columns, own_corpus, own_task
from recipe_ray.api.places import Named
from recipe_ray.attacks.attack import ATTACKS, Attack
from recipe_ray.base.changes import apply_change
from recipe_ray.base.errors import ModelError, SpecError, shortened, suggest
from recipe_ray.base.loading import check_adapter
from recipe_ray.base.paths import (
    existing_path,
    expanded,
    is_there,
    is_url,
    local_path,
    looks_like_path,
    why_missing,
)
from recipe_ray.base.registry import Registry
from recipe_ray.base.spec import explain, explained
from recipe_ray.base.strict_yaml import check_size, read_yaml
from recipe_ray.data.corpus import CORPORA
from recipe_ray.data.hub import fetch_model
from recipe_ray.defenses.defense import DEFENSES, Defense
from recipe_ray.detectors.detector import DETECTORS, Detector
from recipe_ray.models.contents import check_folder_given, check_readable, families_of
from recipe_ray.models.family import MODELS, ModelRef
from recipe_ray.tasks.task import TASKS

# the model whose `source` may be a hub id
RELEASED = "bert"
_MODEL_FORMS = "a model folder, a hub id (owner/name), or a name of `recipe-ray list models`"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]*\w")
_HUB_PAGE = re.compile(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")


def columns_named(**asked: str | None) -> dict[str, str]:
    """Return the columns that were named, by what they hold: text, label."""
    return {what: column for what, column in asked.items() if column is not None}


def parse_model(
    given_as: Named,
    *,
    allow_pickle: bool = False,
    revision: str | None = None,
    ignore_adapter: bool = False,
    sandbox: bool = False,
) -> ModelRef:
    """Return the model of a registered name, a mapping, a local folder or a hub id, pinned.

    With `sandbox` it is what a process apart writes of a folder (`sandbox.py`). Raises SpecError
    for a word that is none of these, ModelError for a folder of a kind that is not read: before
    any data are read, which would be blamed for it.
    """
    if sandbox:
        from recipe_ray.api.sandbox import converted

        how = {"allow_pickle": allow_pickle, "ignore_adapter": ignore_adapter}
        given_as = converted(given_as, **how)
        allow_pickle = ignore_adapter = False
    flags = {
        "allow_pickle": allow_pickle or None,
        "ignore_adapter": ignore_adapter or None,
        "revision": revision,
    }
    given = {name: value for name, value in flags.items() if value is not None}
    value = _plain(given_as, "MODEL", _MODEL_FORMS)
    if isinstance(value, dict):
        return _model({**given, **value})
    text: str = value
    if text in MODELS:
        _refuse_bare(MODELS, text, "MODEL", "its folder or hub id instead")
        return _model({"name": text, **given})
    folder = _model_folder(text)
    if revision is not None and folder.is_dir():
        raise SpecError(
            f"--revision {revision}: MODEL {text} is a folder; only hub models have one"
        )
    try:
        found = folder
        if not folder.is_dir():
            found = fetch_model(text, revision, allow_pickle=allow_pickle).path
    except ModelError as error:
        raise ModelError(f"{error}. There is no folder {text} here either") from error
    check_readable(found, shown=text)
    check_adapter(found, ignore=ignore_adapter)
    return _model({"name": _family(found), "source": text, **given})


def parse_corpus(
    text: Named, size: int | None, columns: Mapping[str, str], model: ModelRef
) -> Found:
    """Return the corpus of a registered name, a mapping, or the user's own file or folder.

    Such a file holds what the model learns from: texts, images with labels, or pairs.
    `columns`: those named by --text-column.
    """
    forms = "a corpus of `recipe-ray list corpora`, or your own file or folder"
    value = _plain(text, "--aux", forms)
    if isinstance(value, str) and value not in CORPORA:
        if is_there(value) or looks_like_path(value):
            _refuse_several(value)
            existing_path(value, "--aux", forms)
            _refuse_model(value, "--aux", forms)
            with explained("--aux"):
                return own_corpus(value, size, columns, model)
        _refuse_other_kind(CORPORA, value, "--aux")
    elif isinstance(value, str):
        _refuse_bare(CORPORA, value, "--aux", "a file or folder instead")
    sized = {} if size is None else {"size": size}
    return _found(CORPORA, value, sized, columns, "--aux")


def parse_task(text: Named, columns: Mapping[str, str], model: ModelRef) -> Found:
    """Return the task of a registered name, a mapping, or of the user's own files.

    Such files hold what the model reads. `columns`: those named by --text-column and
    --label-column.
    """
    forms = f"a task of `recipe-ray list tasks`, or your own data as {FORMS}"
    value = _plain(text, "--task", forms)
    if isinstance(value, str) and value not in TASKS:
        if is_there(value) or looks_like_path(value) or set(value) & set(",="):
            _refuse_model(value, "--task", forms)
            with explained("--task"):
                return own_task(value, columns, model)
        _refuse_other_kind(TASKS, value, "--task")
    elif isinstance(value, str):
        _refuse_bare(TASKS, value, "--task", f"your own data as {FORMS}")
    return _found(TASKS, value, {}, columns, "--task")


def parse_attack(text: Named, changes: list[str]) -> Attack:
    """Return the attack of a registered name or a YAML mapping, after every change `a.b=value`."""
    value = _plain(text, "--attack", "an attack of `recipe-ray list attacks`")
    fields = dict(value) if isinstance(value, dict) else {"name": value}
    for change in changes:
        apply_change(fields, change)
    attack: Attack = parse_component(ATTACKS, fields, "--attack")
    return attack


def parse_defense(text: Named) -> Defense:
    """Return the defense of a registered name or a YAML mapping."""
    value = _plain(text, "--defense", "a defense of `recipe-ray list defenses`")
    defense: Defense = parse_component(DEFENSES, value, "--defense")
    return defense


def parse_detector(text: Named) -> Detector:
    """Return the detector of a registered name or a YAML mapping."""
    value = _plain(text, "--detector", "a detector of `recipe-ray list detectors`")
    detector: Detector = parse_component(DETECTORS, value, "--detector")
    return detector


def parse_component(registry: Registry[Any], value: Any, where: str) -> Any:
    """Return a component; errors name `where` it was given."""
    try:
        return registry.parse(value)
    except ValidationError as error:
        raise explain(error, where) from None
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def _family(folder: Path) -> str:
    # a folder of no family is given to the one that says what it lacks
    return next(iter(families_of(folder)), RELEASED)


def _model(value: Any) -> ModelRef:
    model: ModelRef = parse_component(MODELS, value, "MODEL")
    return model.pinned().as_found()


def _refuse_bare(registry: Registry[Any], name: str, where: str, instead: str) -> None:
    fields = registry.get(name).model_fields
    lacking = [field for field, info in fields.items() if info.is_required()]
    if lacking:
        mapping = ", ".join(f"{field}: ..." for field in lacking)
        raise SpecError(
            f"{where} {name}: its name alone is not enough; give {instead}, or "
            f"'{{name: {name}, {mapping}}}'"
        )


def _refuse_other_kind(registry: Registry[Any], name: str, where: str) -> None:
    for other in (MODELS, CORPORA, TASKS, ATTACKS, DEFENSES):
        if other is not registry and name in other:
            raise SpecError(
                f"{where}: {name!r} belongs to another kind ({other.kind}); a {registry.kind} "
                f"is one of: {', '.join(registry)}"
            )


def _refuse_model(text: str, where: str, forms: str) -> None:
    if (expanded(text) / "config.json").is_file():
        raise SpecError(f"{where}: {text} is the folder of a model (config.json); give {forms}")


def _refuse_several(text: str) -> None:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1 and not is_there(text) and all(map(is_there, parts)):
        raise SpecError(
            f"--aux {text!r}: {len(parts)} files; give one, or a folder that holds them"
        )


def _found(
    registry: Registry[Any],
    value: Any,
    fields: Mapping[str, Any],
    columns: Mapping[str, str],
    where: str,
) -> Found:
    known: Any = parse_component(registry, value, where)
    asked = {**fields, **asked_columns(type(known), columns)}
    if not asked:
        return Found(known, ())
    named = dict(value) if isinstance(value, dict) else {"name": value}
    return Found(parse_component(registry, {**named, **asked}, where), ())


def _model_folder(text: str) -> Path:
    """Return the path of an existing folder, or a hub id as if it were one."""
    if is_url(text):
        hub = _HUB_PAGE.match(text)
        near = f"; the hub id of that page is {hub[1]}" if hub else ""
        raise SpecError(f"MODEL {text!r}: a URL{near}; give {_MODEL_FORMS}")
    folder = local_path(text, "MODEL", _MODEL_FORMS)
    check_folder_given(folder)
    if folder.is_dir():
        return folder
    # owner/name is a hub id, unless there is a folder of the owner's name here
    if _HUB_ID.fullmatch(text) and not folder.parent.exists():
        return folder
    if "/" not in text and not looks_like_path(text):
        known = (*MODELS, *(entry.name for entry in Path().iterdir() if entry.is_dir()))
        raise SpecError(
            f"MODEL {text!r}{suggest(text, known)}: neither a folder here, nor a hub id "
            f"(owner/name), nor one of: {', '.join(MODELS)}"
        )
    elsewhere = (
        f"; from the hub: '{{name: bert, source: {text}}}'" if _HUB_ID.fullmatch(text) else ""
    )
    raise SpecError(f"MODEL: {why_missing(text)}; give {_MODEL_FORMS}{elsewhere}")


def _plain(given: Named, where: str, forms: str) -> Any:
    """Return the mapping that was given or that a word is, or the word; refuse others."""
    if isinstance(given, Mapping):
        check_size(dict(given))
        return _with_name(dict(given), where, str(given))
    if not isinstance(given, (str, PurePath)):
        raise SpecError(f"{where}: expected text or a mapping, not {type(given).__name__}")
    text = str(given)
    start = text.lstrip()[:1]
    if not start or start == "[":
        problem = "expected one value, not a list" if start else "it is empty"
        raise SpecError(f"{where}{f' {text!r}' if start else ''}: {problem}; give {forms}")
    if start != "{":
        return text
    try:
        value = read_yaml(text)
    except SpecError as error:
        said = " ".join(str(error).split())
        raise SpecError(
            f"{where} {text!r}: not a valid YAML mapping, such as '{{name: ...}}': {said}"
        ) from None
    return _with_name(value, where, text)


def _with_name(value: dict[str, Any], where: str, shown: str) -> dict[str, Any]:
    if not isinstance(value.get("name"), str):
        said = shortened(repr(shown))
        raise SpecError(f"{where} {said}: the mapping has no `name`, the first of its fields")
    return value
