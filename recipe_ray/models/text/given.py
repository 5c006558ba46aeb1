"""Giving a purified text model back in the architecture that it came in.

Stages keep a PTM as a masked LM with a pooler. If a model came without a masked-LM head (an
encoder, sentence-transformers, a classifier), a head is fitted and is left out of the result. Parts
that came with the model and that no stage touched (a classification head) are put back into it.

The modules.json of sentence-transformers names Python classes, which that library imports. So its
files are written again: known modules under their usual names, with only the settings that are
known.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from recipe_ray.base.errors import ModelError
from recipe_ray.base.foreign import is_there, read_foreign
from recipe_ray.base.loading import check_shapes, read_json, read_weights, says
from recipe_ray.models.config_fields import outline
from recipe_ray.models.text.bert import ARCHITECTURES, POOLER
from recipe_ray.models.text.checkpoint import load_bert, named_weights

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

    If a module has weights of its own, or is not known, all these files are left out.
    """
    if not is_there(given / MODULES):
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
    try:
        content = read_foreign(given / MODULES, _LARGEST, within=given, error=ModelError)
        listed = json.loads(content)
    except (ModelError, ValueError, RecursionError):
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
    """Return the files next to modules.json, by path; of numbers and flags only the known ones."""
    known = dict(_SETTINGS)
    known |= {f"{m['path']}/config.json": _POOLING for m in modules if m["path"].endswith("ing")}
    found = {}
    for name, fields in known.items():
        if name in _SETTINGS and not is_there(given / name):
            continue
        values = read_json(given / name, within=given)
        found[name] = {
            field: value
            for field, value in values.items()
            if field in fields and isinstance(value, bool | int)
        }
    return found


HEAD_LEFT_OUT = "the masked-LM head that was made for purifying is left out of the result"
# heads that hold no masked LM, by the end of their class's name; the names are of both families
_KINDS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForNextSentencePrediction",
)
_STARTS = {"bert": "Bert", "roberta": "Roberta"}
# which weight of such a head has a row for each label
_LABEL_ROWS = ("classifier.out_proj.weight", "classifier.weight", "qa_outputs.weight")
_PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
_BUFFERS = ("position_ids", "token_type_ids")  # saved by older releases; today's models lack them
_LONGEST_LABEL = 200


def leave_head_out(folder: Path) -> list[str]:
    """Turn a masked LM's folder into that of its encoder and pooler; return what to say of it."""
    module: Any = load_bert(folder).module
    encoder = module.base_model
    encoder.config.architectures = [type(encoder).__name__]
    encoder.save_pretrained(folder)
    return [HEAD_LEFT_OUT]


def left_behind(
    folder: Path, given: Path, *, allow_pickle: bool, ignore_adapter: bool
) -> list[str]:
    """Return sentences about weights of `given` that do not belong into a masked LM's folder."""
    read = read_weights(given, allow_pickle=allow_pickle, ignore_adapter=ignore_adapter)
    original = named_weights(str(says(given, "model_type")), read, given)
    return _said_of_others(original, load_bert(folder).module.state_dict())


def _said_of_others(original: Iterable[str], kept: Collection[str]) -> list[str]:
    others = sorted(n for n in original if n not in kept and not n.endswith(_BUFFERS))
    if not others:
        return []
    return [f"weights that belong to no architecture known here are left out: {_some(others)}"]


def give_back(folder: Path, given: Path, *, allow_pickle: bool, ignore_adapter: bool) -> list[str]:
    """Turn a purified masked LM's folder into one like `given`; return what to say of it.

    The result has the architecture of `given`, purified weights for its own, and the head of
    `given` unchanged. If that architecture is not known, it is a plain encoder.
    """
    values = read_json(given / "config.json")
    kind = str(values.get("model_type"))
    read = read_weights(given, allow_pickle=allow_pickle, ignore_adapter=ignore_adapter)
    original = named_weights(kind, read, given)
    purified = load_bert(folder).module
    whole = {**original, **_encoder_weights(purified, original)}
    module = _with_head(kind, values, purified.config, whole, folder)
    module = module or _encoder(kind, purified.config, whole)
    prefix = f"{ARCHITECTURES[kind].masked_lm.base_model_prefix}."
    bare = not hasattr(module, prefix.rstrip("."))
    kept = {(prefix if bare else "") + name for name in module.state_dict()}
    module.save_pretrained(folder)
    said = [HEAD_LEFT_OUT, *_said_of_others(original, kept)]
    heads = sorted(name for name in kept if not name.startswith(prefix))
    if heads:
        said.append(
            f"its own head ({_some(heads)}) is in the result as it was; it was trained on the "
            "encoder before, so fine-tune the result before you use it"
        )
    return [*said, *copy_sentence_files(given, folder)]


def _encoder_weights(purified: Any, original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the purified weights of encoder and pooler by name; a drawn pooler is left out."""
    prefix = purified.base_model_prefix
    state = {f"{prefix}.{name}": t for name, t in purified.base_model.state_dict().items()}
    pooler = f"{prefix}.{POOLER}."
    has_pooler = any(name.startswith(pooler) for name in original)
    return {name: t for name, t in state.items() if has_pooler or not name.startswith(pooler)}


def _with_head(
    kind: str, values: Mapping[str, Any], config: Any, whole: Mapping[str, Tensor], where: Path
) -> Any:
    """Return a model of the class that `values` names, None if it is unknown or does not fit."""
    names = values.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name not in {_STARTS[kind] + end for end in _KINDS}:
        return None
    own_class: Any = getattr(transformers, str(name), None)
    if own_class is None:  # RoBERTa predicts no next sentence
        return None
    config = type(config).from_dict({**config.to_dict(), **_labels(values, whole)})
    expected: dict[str, Tensor] = outline(lambda: own_class(config), where).state_dict()
    if not expected.keys() <= whole.keys():
        return None
    try:
        check_shapes(whole, expected, where)
    except ModelError:
        return None  # and so the head is named among the parts left out
    return _filled(own_class(config), {name: whole[name] for name in expected})


def _encoder(kind: str, config: Any, whole: Mapping[str, Tensor]) -> Any:
    prefix = f"{ARCHITECTURES[kind].masked_lm.base_model_prefix}."
    pooled = any(name.startswith(f"{prefix}{POOLER}.") for name in whole)
    own_class: Any = getattr(transformers, f"{_STARTS[kind]}Model")
    module = own_class(config, add_pooling_layer=pooled)
    return _filled(module, {name: whole[prefix + name] for name in module.state_dict()})


def _filled(module: PreTrainedModel, weights: Mapping[str, Tensor]) -> Any:
    with torch.no_grad():
        module.load_state_dict(dict(weights))
    module.config.architectures = [type(module).__name__]
    return module


def _labels(values: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a config says of labels: as many as the head has rows, and plain names."""
    rows = next((weights[name] for name in _LABEL_ROWS if name in weights), None)
    if rows is None or not rows.dim():
        return {}
    count, found = len(rows), values.get("id2label")
    names = list(found.values()) if isinstance(found, dict) else []
    plain = len(names) == count and all(
        isinstance(name, str) and len(name) <= _LONGEST_LABEL for name in names
    )
    labels = dict(enumerate(names)) if plain else {n: f"LABEL_{n}" for n in range(count)}
    said = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    problem = values.get("problem_type")
    return {**said, **({"problem_type": problem} if problem in _PROBLEMS else {})}


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:4])
    return f"{shown} ..." if len(names) > 4 else shown
