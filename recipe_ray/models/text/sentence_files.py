"""What sentence-transformers keeps beside a model: which modules follow it, and how they pool.

Its modules.json names Python classes, which that library imports. So these files are written
afresh: known modules under their usual names, and of their settings the fields that are known.
"""

import json
from pathlib import Path
from typing import Any

from recipe_ray.base.errors import ModelError
from recipe_ray.base.loading import read_json

MODULES = "modules.json"
_LARGEST = 64 * 1024  # bytes of modules.json; it names a handful of modules
# type, as it ends -> the name under which it is written
_TYPES = {
    name: f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize")
}
_POOLING = frozenset(
    {
        "word_embedding_dimension",
        "pooling_mode_cls_token",
        "pooling_mode_mean_tokens",
        "pooling_mode_max_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens",
        "pooling_mode_lasttoken",
        "include_prompt",
    }
)
_TRANSFORMER = frozenset({"max_seq_length", "do_lower_case"})
_SETTINGS = {"sentence_bert_config.json": _TRANSFORMER}
_MOST_MODULES = 8


def copy_sentence_files(given: Path, folder: Path) -> list[str]:
    """Write the files of sentence-transformers that `given` has into `folder`; say what was done.

    A module that has weights of its own, or is not known, leaves all of them out.
    """
    if not (given / MODULES).is_file():
        return []
    modules = _modules(given)
    if modules is None:
        return [
            f"the files of sentence-transformers are left out: {MODULES} names modules that are "
            "not known here; the result opens with transformers"
        ]
    try:
        files = _settings_of(given, modules)
    except ModelError as error:
        return [f"the files of sentence-transformers are left out: {error}"]
    for name, value in {MODULES: modules, **files}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    return ["the files of sentence-transformers are in the result, with the settings known here"]


def _modules(given: Path) -> list[dict[str, Any]] | None:
    path = given / MODULES
    if not _is_own(given, path) or path.stat().st_size > _LARGEST:
        return None
    try:
        listed = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return None
    if not isinstance(listed, list) or not 0 < len(listed) <= _MOST_MODULES:
        return None
    modules = []
    for place, entry in enumerate(listed):
        kind = str(entry.get("type")).rpartition(".")[2] if isinstance(entry, dict) else ""
        own = "" if kind == "Transformer" else f"{place}_{kind}"
        if (
            kind not in _TYPES
            or entry.get("path") != own
            or (kind == "Transformer") != (place == 0)
        ):
            return None
        modules.append({"idx": place, "name": str(place), "path": own, "type": _TYPES[kind]})
    return modules


def _settings_of(given: Path, modules: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the files beside modules.json, by path; of numbers and flags those that are known."""
    known = dict(_SETTINGS)
    known |= {f"{m['path']}/config.json": _POOLING for m in modules if m["path"].endswith("ing")}
    found = {}
    for name, fields in known.items():
        if name in _SETTINGS and not (given / name).is_file():
            continue
        if not _is_own(given, given / name):
            raise ModelError(f"{name} is a link out of its folder")
        values = read_json(given / name)
        found[name] = {
            field: value
            for field, value in values.items()
            if field in fields and isinstance(value, bool | int)
        }
    return found


def _is_own(given: Path, path: Path) -> bool:
    # the hub's cache links to its blobs
    home = given.resolve()
    places = (home, home.parent.parent / "blobs")
    return any(path.resolve().is_relative_to(place) for place in places)
