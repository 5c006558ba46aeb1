"""What a folder given as a model is, if it is not a model that can be read, and what to do then.

The one place that recognises other libraries' layouts. It looks at names of files and at
config.json, never at weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from recipe_ray.base.errors import ModelError, unknown
from recipe_ray.base.foreign import PICKLE_SUFFIXES, is_there
from recipe_ray.models.family import MODELS

CONFIG = "config.json"
_READ = ("bert", "roberta", "vit")
_CLIP = (
    "CLIP is read in open_clip's layout: give '{name: clip, arch: ViT-B-32, pretrained: openai}', "
    "or a folder with open_clip_config.json"
)
_VIT = (
    "give a vision transformer with model_type 'vit', such as google/vit-base-patch16-224, or a "
    "network in timm's layout, such as timm/resnet50.a1_in1k"
)
_GENERATES = "it writes text, and what is purified here are encoders with a masked-LM head"
_NEAR = "it is similar to BERT, but a different network; give a BERT or RoBERTa"
# model_types of transformers by what to say of them
_ADVICE = {
    _CLIP: "clip clip_text_model clip_vision_model siglip siglip2 align blip chinese_clip",
    _VIT: "deit beit swin swinv2 dinov2 vit_mae vit_msn convnext convnextv2 resnet "
    "efficientnet mobilenet_v2 timm_wrapper",
    _GENERATES: "gpt2 gpt_neo gptj gpt_neox llama mistral qwen2 qwen3 gemma phi opt bloom t5 mt5 "
    "umt5 bart mbart pegasus marian",
    _NEAR: "distilbert albert electra deberta deberta-v2 xlm-roberta camembert mpnet modernbert "
    "xlm mobilebert nomic_bert roformer convbert big_bird",
}
_TO_SAFETENSORS = (
    "ask for its safetensors version, or open it in the library that wrote it (transformers "
    "before 5 has from_tf and from_flax) and save it by save_pretrained"
)
_RUNTIME = "that is a copy for running a model; give the folder that it was converted from"
# (how a name ends, what it is, what to do)
_FORMATS = (
    (".gguf", "GGUF", _RUNTIME),
    (".onnx", "ONNX", _RUNTIME),
    (".tflite", "TensorFlow Lite", _RUNTIME),
    ("openvino_model.xml", "OpenVINO", _RUNTIME),
    (".mlmodel", "Core ML", _RUNTIME),
    (".h5", "TensorFlow", _TO_SAFETENSORS),
    (".ckpt.index", "TensorFlow", _TO_SAFETENSORS),
    ("saved_model.pb", "TensorFlow", _TO_SAFETENSORS),
    (".msgpack", "Flax", _TO_SAFETENSORS),
    (".ot", "rust-bert", _TO_SAFETENSORS),
)
_TOKENIZER = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer_config.json")
_READABLE = (".safetensors", *PICKLE_SUFFIXES)


def check_readable(folder: Path, family: str | None = None, shown: str | None = None) -> None:
    """Raise ModelError, saying what it is and what to do, for a folder that `family` does not read.

    Without `family`: a folder that no family reads. `shown` is the user's name of the folder, if
    it has another.
    """
    known = families_of(folder)
    said = None if known else _diagnosis(folder)
    if known and family is not None and family not in known:
        said = f"a model of family {known[0]}, not {family}; give {{name: {known[0]}, source: ...}}"
    if said is not None:
        raise ModelError(f"{shown or folder}: {said}")


def families_of(folder: Path) -> list[str]:
    """Return the registered models that recognise a folder as theirs."""
    return [name for name in MODELS if MODELS.get(name).recognises(folder)]


def model_folders(folder: Path) -> list[Path]:
    """Return the folders of models in a folder that holds several; the folder if it is one itself.

    That is so too if it holds none, so that the error is about what was given.
    """
    if is_there(folder / CONFIG) or families_of(folder):
        return [folder]
    inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    return [path for path in inner if is_there(path / CONFIG) or families_of(path)] or [folder]


def check_folder_given(path: Path) -> None:
    """Raise ModelError for a single file in place of a model's folder."""
    if not path.is_file():
        return
    kind = next((what for end, what, _ in _FORMATS if path.name.endswith(end)), None)
    if kind is not None:
        raise ModelError(f"{path}: a {kind} file, which is not read; {_RUNTIME}")
    raise ModelError(
        f"{path}: a file; give the folder that has it together with {CONFIG} (and a tokenizer, for "
        "texts), or for images a mapping such as '{name: vit, source: " + str(path) + "}'"
    )


def _diagnosis(folder: Path) -> str | None:
    """Return what a folder that no family recognises is, and what to do; None if that is unclear.

    config.json decides its kind first, then its files.
    """
    from recipe_ray.base.loading import ADAPTER, read_json

    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return f"the folder is empty; expected {CONFIG} and model.safetensors"
    if "model_index.json" in names:
        return (
            "a pipeline of diffusers (model_index.json), which makes images and is not read; "
            "give an encoder of texts or images"
        )
    if CONFIG in names:
        return _by_config(read_json(folder / CONFIG)) or _by_format(names)
    if ADAPTER in names:
        return _adapter_alone(folder)
    inner = [path for path in _inner_folders(folder) if is_there(path / CONFIG)]
    if inner:
        where = ", ".join(str(path) for path in inner[:3])
        return f"no {CONFIG} found, but there is one further in; give that folder: {where}"
    return _by_format(names) or _by_what_lacks(names)


def _by_config(values: dict[str, Any]) -> str | None:
    kind = values.get("model_type")
    if kind is None and "architecture" in values:
        arch = shortened(values["architecture"])
        return f"{CONFIG}: architecture is {arch}; expected the name that timm has for it"
    if kind is None and isinstance(values.get("family"), str):
        return None
    advice = next((text for text, kinds in _ADVICE.items() if kind in kinds.split()), None)
    if advice is None:
        return f"{CONFIG}: " + unknown("model_type", str(kind)[:80], _READ)
    return (
        f"{CONFIG} says model_type {kind!r}; family vit reads 'vit', family bert reads 'bert' and "
        f"'roberta'; {advice}"
    )


def _adapter_alone(folder: Path) -> str:
    from recipe_ray.base.loading import ADAPTER, read_json

    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    return (
        f"an adapter ({ADAPTER}) for {shortened(base)}, not a whole model; merge it into that "
        "model (peft: merge_and_unload, then save_pretrained) and give the result"
    )


def _inner_folders(folder: Path) -> Iterable[Path]:
    # sentence-transformers' 0_Transformer, a trainer's checkpoint-500, the hub cache's snapshots
    for pattern in ("*", "snapshots/*"):
        yield from sorted(path for path in folder.glob(pattern) if path.is_dir())


def _by_format(names: list[str]) -> str | None:
    if any(name.endswith((*_READABLE, ".index.json")) for name in names):
        return None
    for end, what, advice in _FORMATS:
        found = next((name for name in names if name.endswith(end)), None)
        if found is not None:
            return f"its weights are of {what} only ({found}); no safetensors found: {advice}"
    return None


def _by_what_lacks(names: list[str]) -> str:
    lacks = f"no {CONFIG} found"
    if any(name.endswith(_READABLE) for name in names):
        return f"{lacks} next to the weights. It says what they are; download it as well"
    if any(name in _TOKENIZER for name in names):
        return f"{lacks} and no weights: it has a tokenizer only; give the model's whole folder"
    return f"{lacks}; it has {', '.join(map(shortened, names[:4]))}, which are not a model"
