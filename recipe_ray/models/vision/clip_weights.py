"""Weights of a CLIP: from open_clip's hub repositories, a folder or a file; never its code.

open_clip's own loader falls back from safetensors to a pickle by itself, so it only downloads here.

Architectures of CLIP have open_clip's names: a small one, open_clip's own, one in a file. Only a
plain ViT with a plain text transformer and CLIP's own tokenizer is accepted: towers from timm or
the hub would bring further downloads and other losses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, Self

from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError, model_validator

from recipe_ray.base.errors import ModelError, SpecError, unknown
from recipe_ray.base.foreign import PICKLE_SUFFIXES, is_there
from recipe_ray.base.paths import expanded
from recipe_ray.base.spec import Spec, explain
from recipe_ray.models.contents import check_readable
from recipe_ray.models.vision.vision import Means, Spreads
from recipe_ray.models.vision.weight_source import load_strictly

if TYPE_CHECKING:
    from torch import Tensor, nn

VOCABULARY = 49408  # tokens of CLIP's tokenizer; the last one ends a caption
# what open_clip takes for what a config leaves out (`open_clip.model`, CLIPVisionCfg, CLIPTextCfg)
_LEFT_OUT: dict[str, dict[str, Any]] = {
    "vision_cfg": {
        "image_size": 224,
        "patch_size": 16,
        "width": 768,
        "layers": 12,
        "head_width": 64,
        "mlp_ratio": 4.0,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": VOCABULARY,
        "width": 512,
        "heads": 8,
        "layers": 12,
    },
}


class VisionTower(Spec):
    """A ViT; the defaults train on two cores."""

    image_size: PositiveInt = Field(64, description="pixels per side")
    patch_size: PositiveInt = 8
    width: PositiveInt = 128
    layers: PositiveInt = 4
    head_width: PositiveInt = Field(32, description="there are width / head_width heads")
    mlp_ratio: float = Field(4.0, gt=0, description="neurons of fc1 as a multiple of the width")
    ls_init_value: float | None = Field(
        None, description="initial layer scale; None: no layer scale"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.head_width:
            raise SpecError(f"width {self.width} is no multiple of head_width {self.head_width}")
        if self.image_size % self.patch_size:
            raise SpecError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )
        return self


class TextTower(Spec):
    """A text transformer; the defaults train on two cores."""

    context_length: PositiveInt = Field(32, description="tokens a caption is cut to")
    vocab_size: int = Field(VOCABULARY, ge=VOCABULARY, description="CLIP's tokenizer has 49408")
    width: PositiveInt = 128
    heads: PositiveInt = 4
    layers: PositiveInt = 3

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise SpecError(f"width {self.width} is no multiple of heads {self.heads}")
        return self


class ClipConfig(Spec):
    """Both towers, by the names of open_clip's config files."""

    embed_dim: PositiveInt = Field(128, description="width of both towers' outputs")
    vision_cfg: VisionTower = VisionTower()
    text_cfg: TextTower = TextTower()
    quick_gelu: bool = Field(False, description="OpenAI's approximation of the activation function")

    def for_open_clip(self) -> dict[str, Any]:
        """Return it as open_clip's config files have it."""
        return self.model_dump(exclude_none=True)


def open_clip() -> Any:
    """Return the library; raise ModelError if it is not installed."""
    try:
        import open_clip as library
    except ImportError as error:
        raise ModelError(
            f"model 'clip' needs open_clip ({error}): pip install 'recipe-ray[vision]'"
        ) from error
    return library


def parse_config(values: Mapping[str, Any], where: str) -> ClipConfig:
    """Return what a config of open_clip says; raise SpecError, naming `where`, for other towers."""
    filled = _switched_on(values)
    for tower, defaults in _LEFT_OUT.items():
        given = filled.get(tower)
        if not isinstance(given, dict):
            raise SpecError(f"{where}: expected a {tower}, as in open_clip's config files")
        filled[tower] = {**defaults, **_switched_on(given)}
    try:
        return ClipConfig.model_validate(filled)
    except ValidationError as error:
        raise explain(error, where) from error


@cache
def architectures() -> dict[str, ClipConfig]:
    """Return every architecture of open_clip that is a plain ViT and text transformer, by name."""
    found = {}
    for name in open_clip().list_models():
        try:
            found[name] = parse_config(open_clip().get_model_config(name), name)
        except SpecError:
            continue
    return found


def architecture(name: str) -> ClipConfig:
    """Return an architecture of open_clip; raise ModelError for one unknown or not supported."""
    if name in architectures():
        return architectures()[name]
    if name in open_clip().list_models():
        raise ModelError(
            f"CLIP architecture {name!r} is not supported: it is not a plain ViT with a plain "
            f"text transformer; allowed: {', '.join(sorted(architectures()))}"
        )
    raise ModelError(unknown("CLIP architecture", name, architectures()))


def build(config: ClipConfig, seed: int) -> nn.Module:
    """Return open_clip's module with random weights drawn by `seed`; nothing else is drawn from."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: nn.Module = open_clip().CLIP(**config.for_open_clip())
    return module


def _switched_on(values: Mapping[str, Any]) -> dict[str, Any]:
    # configs also name what a tower lacks: `custom_text: false`, `timm_model_name: null`
    return {n: value for n, value in values.items() if value is not None and value is not False}


CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"
_PICKLED_FILE = "open_clip_pytorch_model.bin"
_NO_WEIGHTS = ("attn_mask", "input_resolution", "context_length", "vocab_size")

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
_STATISTICS = TypeAdapter(
    tuple[Means, Spreads], config=ConfigDict(strict=True, allow_inf_nan=False)
)


@dataclass(frozen=True)
class Checkpoint:
    """What a CLIP is loaded from: its weights' file, architecture, and mean and deviation.

    `within` is the folder that the file must be in, None for a file that the user named.
    """

    weights: Path
    config: ClipConfig
    statistics: Statistics
    within: Path | None


def openai_statistics() -> Statistics:
    """Return the mean and deviation of each colour that CLIP's images are normalised by."""
    library = open_clip()
    return tuple(library.OPENAI_DATASET_MEAN), tuple(library.OPENAI_DATASET_STD)


def from_hub(arch: str, tag: str, revision: str | None, *, allow_pickle: bool) -> Checkpoint:
    """Download the weights that open_clip knows by architecture and tag.

    Raises ModelError for an unknown name, or weights that cannot be had (without `allow_pickle`
    those in safetensors alone).
    """
    config = architecture(arch)
    known = open_clip().pretrained.get_pretrained_cfg(arch, tag)
    if not known:
        tags = open_clip().list_pretrained_tags_by_model(arch)
        raise ModelError(unknown(f"pretrained tag of {arch}", tag, tags))
    # the tag says with which activation function weights were trained: open_clip warns of it
    config = config.revised(quick_gelu=bool(known.get("quick_gelu")))
    files = [WEIGHTS_FILE, *([_PICKLED_FILE] if allow_pickle else [])]
    weights = _downloaded(str(known.get("hf_hub", "")).rstrip("/"), files, revision)
    return Checkpoint(weights, config, _statistics(known, tag), weights.parent)


def from_source(source: str, arch: str | None) -> Checkpoint:
    """Return the content of a folder with a config, or of a file whose architecture is `arch`.

    Raises ModelError for what is missing, SpecError for an architecture that is not supported.
    """
    from recipe_ray.base.loading import read_json

    place = expanded(source)
    if not place.exists():
        raise ModelError(f"source: {source} does not exist; expected a folder or a weights file")
    folder = place if place.is_dir() else place.parent
    within = folder if place.is_dir() else None
    if within is not None and is_there(folder / "config.json"):
        check_readable(folder, "clip" if arch is None else None)  # another library's
    weights = place if within is None else _weights_in(folder)
    if arch is not None:
        return Checkpoint(weights, architecture(arch), openai_statistics(), within)
    if not is_there(folder / CONFIG_FILE):
        raise ModelError(f"source: {folder} has no {CONFIG_FILE}; give `arch`, the architecture")
    described = read_json(folder / CONFIG_FILE)
    where, towers = str(folder / CONFIG_FILE), described.get("model_cfg")
    config = parse_config(towers if isinstance(towers, dict) else described, where)
    statistics = _statistics(described.get("preprocess_cfg"), where)
    return Checkpoint(weights, config, statistics, within)


def fitting(weights: Mapping[str, Tensor], checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the weights by the names of open_clip's module, without entries that are not weights.

    Raises ModelError if they are not of this architecture, before any of it is made.
    """
    from recipe_ray.base.loading import check_shapes
    from recipe_ray.models.config_fields import outline

    kept = {name: tensor for name, tensor in weights.items() if name not in _NO_WEIGHTS}
    if "logit_scale" in kept and kept["logit_scale"].numel() == 1:
        kept["logit_scale"] = kept["logit_scale"].reshape(())  # some have a vector of one
    described = checkpoint.weights.with_name(CONFIG_FILE)
    for tower in ("vision_cfg", "text_cfg"):
        # a layer costs time to build whatever its size, and has several weights
        depth = getattr(checkpoint.config, tower).layers
        if depth > len(kept):
            raise ModelError(
                f"{described}: {tower}.layers is {depth}, but there are only {len(kept)} weights"
            )
    wanted = outline(lambda: build(checkpoint.config, seed=0), described).state_dict()
    check_shapes(kept, wanted, checkpoint.weights)
    lacking = [name for name in wanted if name not in kept]
    if lacking:
        raise ModelError(f"{checkpoint.weights}: it lacks {', '.join(lacking[:4])}")
    return kept


def fill(module: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy weights into a module; raise ModelError, naming some, if they do not fit."""
    load_strictly(module, weights, f"model 'clip', {where}:")


def _downloaded(repo: str, files: list[str], revision: str | None) -> Path:
    problem: Exception | None = None
    for file in files:
        try:
            download = open_clip().pretrained.download_pretrained_from_hf
            return Path(download(repo, filename=file, revision=revision))
        except FileNotFoundError as error:  # open_clip's word for every failure
            problem = error
    safe_only = "" if _PICKLED_FILE in files else "; a pickle is taken only with `allow_pickle`"
    raise ModelError(f"hub model {repo!r}: {problem}{safe_only}") from problem


def _weights_in(folder: Path) -> Path:
    suffixes = (".safetensors", *PICKLE_SUFFIXES)
    found = [path for path in folder.iterdir() if path.suffix in suffixes and not path.is_dir()]
    if not found:
        raise ModelError(f"source: {folder} has no weights; expected {WEIGHTS_FILE}")

    def rank(path: Path) -> tuple[bool, bool, str]:
        # other libraries' weights may be next to open_clip's
        return path.suffix != ".safetensors", not path.name.startswith("open_clip"), path.name

    return min(found, key=rank)


def _statistics(described: Any, where: str) -> Statistics:
    known = described if isinstance(described, dict) else {}
    names = ("mean", "std")
    given = [known.get(name) or own for name, own in zip(names, openai_statistics(), strict=True)]
    mean, std = (tuple(part) if isinstance(part, list) else part for part in given)
    try:
        _STATISTICS.validate_python((mean, std))
    except ValidationError as error:
        raise ModelError(
            f"{where}: mean and std are three numbers each, the latter above 0, got "
            f"{shortened(mean)} and {shortened(std)}"
        ) from error
    return mean, std
