"""Where the weights of a vision PTM come from: a file, a folder that we saved, or torchvision.

Each source says three things: settings of the architecture that it knows, what decides its content
(for keys), and the tensors. torchvision is an optional dependency (extra `vision`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.error import URLError

from pydantic import ValidationError

from recipe_ray.base.errors import ModelError, UnsafeModelError, unknown
from recipe_ray.base.foreign import PICKLE_SUFFIXES, is_there
from recipe_ray.base.paths import expanded
from recipe_ray.base.spec import Spec, explain
from recipe_ray.models.contents import check_readable

if TYPE_CHECKING:
    from torch import Tensor, nn

CONFIG = "config.json"
S = TypeVar("S", bound=Spec)
_WEIGHTS = (".safetensors", ".index.json", *PICKLE_SUFFIXES)


class Origin(Protocol):
    """Where weights come from."""

    def settings(self) -> dict[str, Any]:
        """Return the fields of the architecture that are known there; a user's own win."""
        ...

    def content(self) -> dict[str, Any]:
        """Return what decides the weights, never a path."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors by name; raise ModelError or UnsafeModelError."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A state dict in one file."""

    path: Path
    allow_pickle: bool

    def settings(self) -> dict[str, Any]:
        """Return nothing: a state dict says no more than shapes."""
        return {}

    def content(self) -> dict[str, Any]:
        """Return the file's checksum."""
        from recipe_ray.base.loading import weights_checksum

        return {"file": weights_checksum(self.path)}

    def weights(self) -> dict[str, Tensor]:
        """Return its tensors."""
        from recipe_ray.base.loading import read_weight_file

        return read_weight_file(self.path, allow_pickle=self.allow_pickle)


@dataclass(frozen=True)
class LocalFolder:
    """A folder as `save` of `family` writes it: config.json and weights."""

    path: Path
    family: str
    allow_pickle: bool
    ignore_adapter: bool = False

    def settings(self) -> dict[str, Any]:
        """Return what config.json says; raise ModelError if it is of another family."""
        from recipe_ray.base.loading import read_json

        check_readable(self.path)
        values = read_json(self.path / CONFIG)
        family = values.pop("family", None)
        if family != self.family:
            raise ModelError(f"{self.path / CONFIG}: family is {family!r}, not {self.family!r}")
        return values

    def content(self, *more: str) -> dict[str, Any]:
        """Return the checksums of the files that hold weights, and of those that end in `more`."""
        from recipe_ray.base.loading import check_adapter, checksums_in

        check_adapter(self.path, ignore=self.ignore_adapter)
        ends = (*_WEIGHTS, *more)
        files = [path for path in self.path.iterdir() if path.name.endswith(ends)]
        return {"files": checksums_in(self.path, files)}

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors."""
        from recipe_ray.base.loading import read_weights

        return read_weights(
            self.path, allow_pickle=self.allow_pickle, ignore_adapter=self.ignore_adapter
        )


def save_folder(module: nn.Module, folder: Path, family: str, settings: dict[str, Any]) -> None:
    """Write what `LocalFolder` reads: model.safetensors under the module's names, config.json."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    (folder / CONFIG).write_text(json.dumps({"family": family, **settings}, indent=2) + "\n")


def local_origin(
    source: str, family: str, *, allow_pickle: bool, ignore_adapter: bool
) -> Origin | None:
    """Return the origin at a path, or None if nothing is there."""
    path = expanded(source)
    if path.is_dir():
        return LocalFolder(path, family, allow_pickle, ignore_adapter)
    return LocalFile(path, allow_pickle) if is_there(path) else None


def names_hub(source: str | None) -> bool:
    """Tell whether a source is a hub id: neither here nor written as a path."""
    return source is not None and not (source.startswith(("/", ".", "~")) or Path(source).exists())


def architecture_of(kind: type[S], asked: Spec, origin: Origin | None, defaults: Any) -> S:
    """Return the architecture: what is asked for, else what the origin says, else the defaults.

    A field that is None in `asked` is not asked for. Raises SpecError for settings that do not fit.
    """
    known = origin.settings() if origin is not None else {}
    own = {name: getattr(asked, name) for name in kind.model_fields}
    given = {name: value for name, value in own.items() if value is not None}
    try:
        return kind.model_validate({**defaults, **known, **given})
    except ValidationError as error:
        raise explain(error, f"model {getattr(asked, 'name', kind.__name__)!r}") from None


def load_strictly(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict that must fit; raise ModelError naming what is missing, odd or misshapen.

    Memory for an outline is allocated only after the weights have been compared with it.
    """
    check_fit(module, weights, where)
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        module.to_empty(device="cpu")
    module.load_state_dict(dict(weights))


def check_fit(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Raise ModelError, naming some, if weights and a module's own differ in names or shapes."""
    from recipe_ray.base.loading import check_shapes

    own = module.state_dict()
    hint = " (num_classes, image_size and the widths decide it)"
    check_shapes(weights, own, where, hint)
    lacking = [name for name in own if name not in weights]
    surplus = [name for name in weights if name not in own]
    for what, names in (("lacks", lacking), ("has", surplus)):
        if names:
            some = ", ".join(names[:4]) + (" ..." if len(names) > 4 else "")
            not_asked = "" if what == "lacks" else ", which the requested architecture lacks"
            raise ModelError(f"{where}: it {what} {some}{not_asked}")


TORCHVISION = "torchvision"  # as the `source` of a model


def torchvision_models() -> Any:
    """Return `torchvision.models`; raise ModelError if torchvision is not installed."""
    try:
        from torchvision import models
    except ImportError as error:
        raise ModelError(
            f"this model needs torchvision ({error}): pip install 'recipe-ray[vision]'"
        ) from error
    return models


@dataclass(frozen=True)
class ReleasedWeights:
    """Weights that torchvision releases for `arch` under a name such as IMAGENET1K_V1.

    They are pickles: downloaded only with `allow_pickle`, checked against the hash in their name,
    and opened by the weights_only unpickler.
    """

    arch: str
    tag: str
    allow_pickle: bool

    def settings(self) -> dict[str, Any]:
        """Return the architecture, input size and normalisation they were trained with."""
        entry = self._entry()
        preset = entry.transforms()
        return {
            "arch": self.arch,
            "num_classes": len(entry.meta["categories"]),
            "image_size": preset.crop_size[0],
            "mean": tuple(preset.mean),
            "std": tuple(preset.std),
        }

    def content(self) -> dict[str, Any]:
        """Return the name of the file, which has the beginning of its hash in it."""
        return {TORCHVISION: self._entry().url.rpartition("/")[2]}

    def weights(self) -> dict[str, Tensor]:
        """Return the tensors, downloaded once into torch's own cache."""
        what = f"torchvision's {self.arch} {self.tag}"
        if not self.allow_pickle:
            raise UnsafeModelError(
                f"{what}: torchvision releases pickles, which can run code when they are opened; "
                "pass --allow-pickle to download it (its hash is checked) and read it with "
                "torch's weights_only unpickler"
            )
        try:
            state: dict[str, Tensor] = self._entry().get_state_dict(
                progress=False, check_hash=True, weights_only=True, map_location="cpu"
            )
        except (URLError, OSError, RuntimeError) as error:
            raise ModelError(f"{what} cannot be downloaded: {error}") from error
        return state

    def _entry(self) -> Any:
        known = torchvision_models().get_model_weights(self.arch).__members__
        # weights without categories have no classifier: there is nothing to pre-train with
        usable = [name for name, entry in known.items() if entry.meta["categories"] is not None]
        if self.tag not in usable:
            raise ModelError(unknown(f"weights of torchvision's {self.arch}", self.tag, usable))
        return known[self.tag]
