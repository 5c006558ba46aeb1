"""The networks that timm names: how one is built, and the folders that hold one in timm's layout.

Such a folder has safetensors and a config.json with `architecture`. Of config.json only the fields
below are taken over, each checked: timm would download what `pretrained_cfg` names, and pass
`model_args` to any of its classes. A network is built by its name, without weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from recipe_ray.base.errors import ModelError, suggest
from recipe_ray.models.contents import check_readable
from recipe_ray.models.vision.labelled import LabelledArchitecture
from recipe_ray.models.vision.vision import IMAGENET
from recipe_ray.models.vision.weight_source import (
    CONFIG,
    LocalFolder,
    architecture_of,
    check_fit,
    load_strictly,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

OLDEST = "1.0.12"  # its networks have forward_head, head_hidden_size and set_input_size
# arguments of a network that are read; of the others only rates of what is dropped in a training
_ARGUMENTS = ("img_size", "num_classes", "in_chans", "global_pool")
_DROPPED = "drop"
_COLOURS = 3
Pooling = Literal["avg", "max", "avgmax", "catavgmax", "token", "map"]


def timm_library() -> Any:
    """Return timm; raise ModelError if it is missing or older than `OLDEST`."""
    from packaging.version import Version

    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"this model needs timm ({error}): pip install 'recipe-ray[vision]'"
        ) from error
    if Version(timm.__version__) < Version(OLDEST):
        raise ModelError(
            f"this model needs timm {OLDEST} or newer, and {timm.__version__} is installed: "
            "pip install --upgrade timm"
        )
    return timm


class TimmArchitecture(LabelledArchitecture):
    """A network of timm by its name, with the size of its images and the number of its classes."""

    of_small: ClassVar[frozenset[str]] = frozenset()

    arch: str = Field(min_length=1)
    global_pool: Pooling | None = Field(None, description="None: the architecture's own")

    @property
    def fixed_size(self) -> bool:
        """Whether its weights are made for one size of images, as those of a ViT."""
        return bool(_preset(self.arch).get("fixed_input_size"))

    def build(self, seed: int) -> Any:
        """Return an untrained network; raise ModelError for a name that timm does not have."""
        import torch

        options: dict[str, Any] = {"num_classes": self.num_classes}
        if self.fixed_size:
            options["img_size"] = self.image_size
        if self.global_pool is not None:
            options["global_pool"] = self.global_pool
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm_library().create_model(self.arch, pretrained=False, **options)

    def filled(self, weights: Mapping[str, Tensor], where: str) -> Any:
        """Return the network with these weights, which are compared with it before it is made.

        Raises ModelError, naming `where`, for weights that are not of this architecture.
        """
        import torch

        from recipe_ray.models.config_fields import outline

        check_known(self.arch, where)
        module = outline(lambda: self.build(0), where)
        own = module.state_dict()
        # as torch does: older files lack these counters, and nothing is computed of them
        counters = {name: torch.tensor(0) for name in own if name.endswith("num_batches_tracked")}
        given = {**counters, **weights}
        if any(name not in own for name, _ in module.named_buffers()):
            # tables that a network computes when it is made are not among the weights
            check_fit(module, given, where)
            module = self.build(0)
        load_strictly(module, given, where)
        return module

    def resized(self, module: Any, size: int, where: str) -> TimmArchitecture:
        """Make a network read images of `size` pixels, and return its architecture then.

        Positions of a ViT are interpolated. Raises ModelError if the architecture cannot change.
        """
        from recipe_ray.models.config_fields import explained_by

        if self.fixed_size:
            if not hasattr(module, "set_input_size"):
                raise ModelError(
                    f"{where}: image_size {size}: {self.arch} reads {self.image_size} pixels only"
                )
            with explained_by(where, f"{self.arch} cannot read images of {size} pixels"):
                module.set_input_size(img_size=(size, size))
        return self.revised(image_size=size)

    def save(self, module: nn.Module, folder: Path) -> None:
        """Write what `timm.create_model("local-dir:FOLDER", pretrained=True)` loads."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        kept = ("first_conv", "classifier", "fixed_input_size")
        preset = {name: value for name, value in _preset(self.arch).items() if name in kept}
        arguments: dict[str, Any] = {"img_size": self.image_size} if self.fixed_size else {}
        if self.global_pool is not None:
            arguments["global_pool"] = self.global_pool
        described = {
            "architecture": self.arch,
            "num_classes": self.num_classes,
            **({"model_args": arguments} if arguments else {}),
            "pretrained_cfg": {
                **preset,
                "custom_load": False,
                "num_classes": self.num_classes,
                "input_size": [_COLOURS, self.image_size, self.image_size],
                "mean": list(self.mean),
                "std": list(self.std),
                "interpolation": "bilinear",  # as `data/images.py` resizes
                "crop_pct": 1.0,
                "crop_mode": "center",
            },
        }
        (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n")


def check_known(arch: str, where: str) -> None:
    """Raise ModelError, with the nearest name, for an architecture that timm does not have."""
    timm = timm_library()
    if timm.is_model(arch) and "." not in arch:
        return
    base, _, tag = arch.partition(".")
    if tag and timm.is_model(base):
        raise ModelError(
            f"{where}: architecture {arch!r} names weights, too; give arch: {base}, or the weights "
            f"on the hub by source: timm/{arch}"
        )
    names = timm.list_models()
    raise ModelError(
        f"{where}: unknown architecture {shortened(arch)}{suggest(arch[:80], names)}; allowed: the "
        f"{len(names):,} names that timm.list_models() of timm {timm.__version__} gives"
    )


def architecture_from(asked: Any, origin: Any) -> TimmArchitecture:
    """Return what is asked for, else what the origin says, else what timm says of the name."""
    known = origin.settings() if origin is not None else {}
    arch = asked.arch or known.get("arch")
    if arch is None:
        raise ModelError(f"model {asked.name!r}, source {asked.source}: give its arch, as timm has")
    check_known(arch, f"model {asked.name!r}" + (f", source {asked.source}" if origin else ""))
    return architecture_of(TimmArchitecture, asked, origin, _defaults(_preset(arch)))


def _defaults(preset: Mapping[str, Any]) -> dict[str, Any]:
    _, height, width = preset.get("input_size", (_COLOURS, 224, 224))
    return {
        "image_size": min(height, width),
        "num_classes": preset.get("num_classes") or 1000,
        "mean": preset.get("mean", IMAGENET[0]),
        "std": preset.get("std", IMAGENET[1]),
    }


def _preset(arch: str) -> dict[str, Any]:
    """Return what timm says of an architecture's images; nothing if it says nothing."""
    from timm.models import get_pretrained_cfg

    check_known(arch, "model 'timm'")
    found: Any = get_pretrained_cfg(arch)
    return {} if found is None else found.to_dict()


@dataclass(frozen=True)
class TimmFolder(LocalFolder):
    """A folder in timm's layout, or a snapshot of one on the hub."""

    def settings(self) -> dict[str, Any]:
        """Return what config.json says of the architecture; raise ModelError if it makes no sense.

        Older files have the fields of `pretrained_cfg` at their top.
        """
        from recipe_ray.base.loading import read_json

        check_readable(self.path, self.family)
        where = self.path / CONFIG
        values = read_json(where)
        arguments = _object(values.get("model_args") or {}, "model_args", where)
        stated = _object(values.get("pretrained_cfg", values), "pretrained_cfg", where)
        odd = [n for n in arguments if n not in _ARGUMENTS and _DROPPED not in n]
        if odd:
            raise ModelError(
                f"{where}: model_args has {', '.join(map(shortened, odd[:4]))}, which change the "
                f"network and are not read; allowed: {', '.join(_ARGUMENTS)}"
            )
        classes = arguments.get("num_classes", values.get("num_classes", stated.get("num_classes")))
        if classes == 0:
            raise ModelError(
                f"{where}: num_classes is 0: the model has no classifier, and here it learns from "
                "the labels of images; give one with a classifier"
            )
        found = {
            "arch": values.get("architecture"),
            "image_size": _side(arguments, stated, where),
            "num_classes": classes,
            "mean": stated.get("mean"),
            "std": stated.get("std"),
            "global_pool": arguments.get("global_pool", stated.get("global_pool")),
        }
        return {name: value for name, value in found.items() if value is not None}


def is_timm_folder(folder: Path) -> bool:
    """Tell whether a folder's config.json is timm's, by its `architecture`."""
    from recipe_ray.base.loading import says

    foreign = (says(folder, name) for name in ("model_type", "family"))
    return says(folder, "architecture") is not None and not any(foreign)


def _object(value: Any, name: str, where: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ModelError(f"{where}: {name} is {shortened(value)}; expected an object")
    return value


def _side(arguments: Mapping[str, Any], stated: Mapping[str, Any], where: Path) -> Any:
    """Return the images' pixels per side, None if it is not said."""
    size = stated.get("input_size", [_COLOURS])
    if not isinstance(size, list) or not size:
        raise ModelError(f"{where}: input_size is {shortened(size)}; expected [3, 224, 224] or so")
    channels, *sides = size
    channels = arguments.get("in_chans", channels)
    if channels != _COLOURS:
        raise ModelError(f"{where}: images of {shortened(channels)} colours; allowed: {_COLOURS}")
    given = arguments.get("img_size")
    if given is not None:
        sides = given if isinstance(given, list) else [given]
    if len(set(map(repr, sides))) > 1:
        raise ModelError(f"{where}: images of {shortened(sides)} pixels; only squares are read")
    return sides[0] if sides else None
